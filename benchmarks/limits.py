"""How much work a call is, and how much of it a device can do: floating-point operations, bytes and peaks.

Operations are counted in the traced program, which is the same on every device: two for each product that a
convolution or a matrix product needs, those with padding left out, and one for each element of other arithmetic.
XLA's own count is not used: on GPUs it misses what libraries compute. Bytes are those that XLA says the compiled
program touches, operation by operation; a loop's body counts once there, and what stays in caches as if it did not,
so on a CPU they may exceed what its memory can move.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ELEMENTWISE = {
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "max",
    "min",
    "abs",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "tanh",
    "logistic",
}
ELEMENTWISE |= {"logistic", "pow", "integer_pow", "square", "sign", "add_any", "select_n", "clamp"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min"}


class Peak(NamedTuple):
    """What a device does at best, per second; None where its maker publishes none.

    Attributes:
      float32: operations of 32-bit arithmetic.
      tensor_float32: of matrix units on 32-bit numbers shortened to 19 bits, without sparsity.
      bfloat16: of matrix units on 16-bit numbers, without sparsity.
      bandwidth: bytes of its memory.
      source: where the figures are from.
    """

    float32: float | None
    tensor_float32: float | None
    bfloat16: float | None
    bandwidth: float
    source: str


# By the beginning of JAX's `device_kind`. The makers' figures with sparsity are halved.
PEAKS = {
    "NVIDIA H100 80GB HBM3": Peak(67e12, 494.7e12, 989.4e12, 3.35e12, "NVIDIA H100 datasheet, SXM"),
    "NVIDIA H200": Peak(67e12, 494.7e12, 989.4e12, 4.8e12, "NVIDIA H200 datasheet, SXM"),
    "NVIDIA A100-SXM4-80GB": Peak(19.5e12, 156e12, 312e12, 2.039e12, "NVIDIA A100 datasheet, SXM 80 GB"),
    "NVIDIA A100-SXM4-40GB": Peak(19.5e12, 156e12, 312e12, 1.555e12, "NVIDIA A100 datasheet, SXM 40 GB"),
    "TPU v5 lite": Peak(None, None, 197e12, 819e9, "Google Cloud documentation, TPU v5e"),
    "TPU v5e": Peak(None, None, 197e12, 819e9, "Google Cloud documentation, TPU v5e"),
}


def _seconds(function: Callable[..., Any], *arguments: Any, repeats: int = 5) -> float:
    jax.block_until_ready(function(*arguments))
    best = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - began)
    return best


@cache
def peak_of(device: Any) -> Peak | None:
    """The published peak; of a CPU the best of a few matrix products and copies, measured now; else None."""
    if device.platform != "cpu":
        return next((peak for name, peak in PEAKS.items() if device.device_kind.startswith(name)), None)
    side = 1024
    with jax.default_device(device):
        square = jnp.ones((side, side))
        products = 2 * side**3 / _seconds(jax.jit(jnp.matmul), square, square)
        long = jnp.ones(1 << 24)
        copied = 2 * long.nbytes / _seconds(jax.jit(lambda x: x + 1), long)
    return Peak(products, None, None, copied, "measured: best of 5 float32 products of 1024² and copies of 64 MiB")


def shares(flops: float, moved: float, seconds: float, *, precision: str) -> dict[str, float]:
    """Shares of the first device's peaks that a call reaches; nothing where no peak is known.

    Args:
      flops: its operations.
      moved: its bytes.
      seconds: its time.
      precision: "parity" or "highest" (float32), "bf16", else what the device does by default.
    """
    device = jax.devices()[0]
    peak = peak_of(device)
    if peak is None:
        return {}
    by_default = peak.tensor_float32 or peak.float32 or peak.bfloat16
    rate = {"parity": peak.float32, "highest": peak.float32, "bf16": peak.bfloat16}.get(precision, by_default)
    found = {"share_of_bandwidth": moved / seconds / peak.bandwidth}
    return found | ({"share_of_peak": flops / seconds / rate} if rate else {})


def operations(jaxpr: Any, needed: Sequence[bool] | None = None) -> int:
    """Floating-point operations that the results of a traced program need; a `while_loop`'s body counts once.

    Args:
      jaxpr: of `jax.make_jaxpr`, or of the `trace` of a compiled function.
      needed: which results are asked for; all of them by default.
    """
    program = getattr(jaxpr, "jaxpr", jaxpr)
    asked = [True] * len(program.outvars) if needed is None else needed
    # Gradients that nothing reads, as those of kernels, are in the trace and are never computed.
    alive = {var for var, wanted in zip(program.outvars, asked, strict=True) if wanted and not hasattr(var, "val")}
    total = 0
    for equation in reversed(program.eqns):
        wanted = [var in alive for var in equation.outvars]
        if any(wanted) or equation.effects:
            alive |= {var for var in equation.invars if not hasattr(var, "val")}
            total += _equation(equation, wanted)
    return total


def _equation(equation: Any, wanted: Sequence[bool]) -> int:
    name, out, parameters = equation.primitive.name, equation.outvars[0].aval, equation.params
    programs = [p for p in jax.tree.leaves(list(parameters.values()), is_leaf=_is_program) if _is_program(p)]
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * prod(out.shape) * prod(shape[axis] for axis in contracted)
    if name == "jit":
        return operations(programs[0], wanted)
    if name == "cond":
        return max(operations(program) for program in programs)
    if programs:
        times = parameters["length"] if name == "scan" else 1
        times = prod(parameters["grid_mapping"].grid) if name == "pallas_call" else times
        return times * sum(operations(program) for program in programs)
    if name in REDUCTIONS:
        return prod(equation.invars[0].aval.shape)
    return prod(out.shape) if name in ELEMENTWISE else 0


def _is_program(parameter: Any) -> bool:
    return hasattr(parameter, "eqns") or hasattr(parameter, "jaxpr")


def _convolution(equation: Any) -> int:
    """Two operations for each product of a real input with a kernel element."""
    images, kernel = (v.aval.shape for v in equation.invars)
    out, p = equation.outvars[0].aval.shape, equation.params
    numbers = p["dimension_numbers"]
    taps = 1
    for axis, (low, _) in enumerate(p["padding"]):
        length, size = images[numbers.lhs_spec[2 + axis]], kernel[numbers.rhs_spec[2 + axis]]
        steps = np.arange(out[numbers.out_spec[2 + axis]])[:, None] * p["window_strides"][axis]
        places = steps + np.arange(size) * p["rhs_dilation"][axis] - low
        spacing = p["lhs_dilation"][axis]
        taps *= int(((places >= 0) & (places % spacing == 0) & (places // spacing < length)).sum())
    filters, inputs = (kernel[numbers.rhs_spec[k]] for k in (0, 1))
    return 2 * taps * filters * inputs * images[numbers.lhs_spec[0]] // p["batch_group_count"]
