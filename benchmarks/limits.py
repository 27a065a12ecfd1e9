"""What a device can do at best, and how much of it a call reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


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


def _best(function: Callable[..., Any], *arguments: Any, repeats: int = 5) -> float:
    """The shortest of several times, after one that compiles."""
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return min(times[1:])


@cache
def peak_of(device: Any) -> Peak | None:
    """The published peak; of a CPU the best of a few matrix products and copies, measured now; else None."""
    if device.platform != "cpu":
        return next((peak for name, peak in PEAKS.items() if device.device_kind.startswith(name)), None)
    side = 1024
    with jax.default_device(device):
        square = jnp.ones((side, side))
        products = 2 * side**3 / _best(jax.jit(jnp.matmul), square, square)
        long = jnp.ones(1 << 24)
        copied = 2 * long.nbytes / _best(jax.jit(lambda x: x + 1), long)
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
    share = {"share_of_bandwidth": moved / seconds / peak.bandwidth}
    return share | ({"share_of_peak": flops / seconds / rate} if rate else {})
