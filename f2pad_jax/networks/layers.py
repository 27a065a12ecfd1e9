"""Convolutions and pooling for frozen networks, in the forms whose gradient in the image is cheap.

The solver takes that gradient hundreds of times inside one compiled loop. On a CPU, XLA's own transposes of
convolutions then run several times slower than the convolution itself, so the gradients are written out
here, again as convolutions and shifted sums. They are exact, in the kernels too, whose unused gradients cost
nothing under `jit`. There is no forward mode.

The precision of products is that of `jax.default_matmul_precision` where the layer is called, in the gradient too.
Dense layers compute in the type of their kernel, and give it to their output.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# A tree of parameters; its innermost dicts are {"kernel": (kh, kw, C_in, C_out), "bias": (C_out,)}.
Params = dict[str, Any]
Pads = tuple[tuple[int, int], tuple[int, int]]

NO_PADS: Pads = ((0, 0), (0, 0))


def conv_shapes(size: int, inputs: int, outputs: int) -> Params:
    """Shapes of the parameters of one square convolution, HWIO."""
    return {
        "kernel": jax.ShapeDtypeStruct((size, size, inputs, outputs), jnp.float32),
        "bias": jax.ShapeDtypeStruct((outputs,), jnp.float32),
    }


def halved(params: Params) -> Params:
    """The dense kernels in bfloat16; all else, depthwise kernels above all, whose rounding costs most, as it is."""

    def half(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        depthwise = leaf.ndim == 4 and leaf.shape[2] == 1
        return leaf.astype(jnp.bfloat16) if path[-1].key == "kernel" and not depthwise else leaf

    return jax.tree_util.tree_map_with_path(half, params)


def same_pads(shape: tuple[int, ...], size: int, stride: int) -> Pads:
    """TensorFlow's "SAME" padding of a (B, H, W, C) shape; where the total is odd, the extra line is last."""

    def side(length: int) -> tuple[int, int]:
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        return total // 2, total - total // 2

    return side(shape[1]), side(shape[2])


def conv(params: Params, images: jax.Array, *, stride: int = 1, pads: Pads = NO_PADS) -> jax.Array:
    """Dense convolution plus bias: (B, H, W, C_in) to (B, H', W', C_out)."""
    kernel = params["kernel"]
    return _biased(_dense(images.astype(kernel.dtype), kernel, stride, pads, _precision()), params)


def phase_conv(params: Params, images: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    """`conv` with a stride, as an equal convolution without one over the image's stride² phases.

    Worth it for stems, whose gradient would otherwise be a convolution of mostly zeros with three outputs.
    """
    kernel, (batch, height, width, inputs) = params["kernel"], images.shape
    images = images.astype(kernel.dtype)

    def side(length: int, size: int, pad: tuple[int, int]) -> tuple[int, int, int, tuple[int, int]]:
        front = -pad[0] % stride  # zero taps that make the padding a whole number of phases
        taps, cells = -(-(size + front) // stride), -(-length // stride)
        before = (pad[0] + front) // stride
        outputs = (length + sum(pad) - size) // stride + 1
        return front, taps, cells, (before, outputs - 1 + taps - before - cells)

    top, rows, tall, row_pad = side(height, kernel.shape[0], pads[0])
    left, columns, wide, column_pad = side(width, kernel.shape[1], pads[1])
    cells = jnp.pad(images, ((0, 0), (0, tall * stride - height), (0, wide * stride - width), (0, 0)))
    cells = cells.reshape(batch, tall, stride, wide, stride, inputs).swapaxes(2, 3)
    cells = cells.reshape(batch, tall, wide, stride**2 * inputs)
    bottom, right = rows * stride - top - kernel.shape[0], columns * stride - left - kernel.shape[1]
    kernel = jnp.pad(kernel, ((top, bottom), (left, right), (0, 0), (0, 0)))
    kernel = kernel.reshape(rows, stride, columns, stride, inputs, -1).swapaxes(1, 2)
    kernel = kernel.reshape(rows, columns, stride**2 * inputs, -1)
    return _biased(_dense(cells, kernel, 1, (row_pad, column_pad), _precision()), params)


def pointwise(params: Params, images: jax.Array) -> jax.Array:
    """1 × 1 convolution plus bias, as the matrix product it is."""
    kernel = params["kernel"][0, 0]
    return _biased(jnp.einsum("bhwi,io->bhwo", images.astype(kernel.dtype), kernel), params)


def depthwise(params: Params, images: jax.Array, *, stride: int = 1) -> jax.Array:
    """Depthwise convolution plus bias, "SAME" padding: (B, H, W, C), kernel (k, k, 1, C).

    Computes in the type of the kernel; the output is of the images' type.
    """
    kernel = params["kernel"][:, :, 0]
    summed = _shifted_sum(images.astype(kernel.dtype), kernel, stride) + params["bias"]
    return summed.astype(images.dtype)


def max_pool(images: jax.Array) -> jax.Array:
    """Maximum over 3 × 3 with stride 2 and one pixel of padding: (B, H, W, C), any height and width."""
    return _max_three(_max_three(images, 1), 2)


def _biased(products: jax.Array, params: Params) -> jax.Array:
    return (products + params["bias"]).astype(products.dtype)


def _precision() -> str | None:
    """The precision asked for by the caller; backward passes are traced when that is forgotten."""
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


def _convolve(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads, precision: str | None, dilation: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        pads,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dense(images: jax.Array, kernel: jax.Array, stride: int, pads: Pads, precision: str | None) -> jax.Array:
    return _convolve(images, kernel, stride, pads, precision)


def _dense_forward(images: Any, kernel: Any, stride: int, pads: Pads, precision: str | None) -> Any:
    return _convolve(images.value, kernel.value, stride, pads, precision), _saved(images, kernel)


def _dense_backward(
    stride: int, pads: Pads, precision: str | None, saved: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    images, kernel, trained = saved

    def side(axis: int) -> tuple[int, int]:
        before, span = pads[axis][0], (cotangent.shape[1 + axis] - 1) * stride + 1
        return kernel.shape[axis] - 1 - before, images.shape[1 + axis] - span + before

    # Without the barrier XLA folds the flip into the convolution, which inside a loop is 6 times slower.
    flipped = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    back = _convolve(cotangent, flipped, 1, (side(0), side(1)), precision, dilation=stride)
    if trained is None:
        return back, None
    return back, jax.vjp(lambda k: _convolve(images, k, stride, pads, precision), kernel)[1](cotangent)[0]


_dense.defvjp(_dense_forward, _dense_backward, symbolic_zeros=True)


def _saved(images: Any, kernel: Any) -> tuple[jax.Array, jax.Array, tuple[()] | None]:
    """What a backward pass needs, and None where nobody asks for the kernel's gradient: tracing that takes long."""
    return images.value, kernel.value, () if kernel.perturbed else None


def _taps(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    size, (batch, height, width, channels) = kernel.shape[0], images.shape
    (top, _), (left, _) = same_pads(images.shape, size, stride)
    tall, wide, reach = -(-height // stride), -(-width // stride), (size - 1) // stride
    bottom = (tall + reach) * stride - height - top
    right = (wide + reach) * stride - width - left
    padded = jnp.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
    phases = padded.reshape(batch, tall + reach, stride, wide + reach, stride, channels)
    total = jnp.zeros((), images.dtype)
    for row in range(size):
        for column in range(size):
            i, j = row // stride, column // stride
            window = phases[:, i : i + tall, row % stride, j : j + wide, column % stride]
            total = total + window * kernel[row, column]
    return total


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted_sum(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Depthwise convolution as shifted products: XLA's grouped convolution is many times slower on a CPU."""
    return _taps(images, kernel, stride)


def _shifted_sum_forward(images: Any, kernel: Any, stride: int) -> Any:
    return _taps(images.value, kernel.value, stride), _saved(images, kernel)


def _shifted_sum_backward(stride: int, saved: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    # Each phase of the image's gradient is itself a shifted sum, over the taps that reach that phase.
    images, kernel, trained = saved
    size, (batch, height, width, channels) = kernel.shape[0], images.shape
    (top, _), (left, _) = same_pads(images.shape, size, stride)
    tall, wide, reach = -(-(height + top) // stride), -(-(width + left) // stride), (size - 1) // stride
    bottom, right = max(tall - cotangent.shape[1], 0), max(wide - cotangent.shape[2], 0)
    padded = jnp.pad(cotangent, ((0, 0), (reach, bottom), (reach, right), (0, 0)))

    def phase(row: int, column: int) -> jax.Array:
        total = jnp.zeros((batch, tall, wide, channels), images.dtype)
        for tap_row in range(row, size, stride):
            for tap_column in range(column, size, stride):
                i, j = reach - tap_row // stride, reach - tap_column // stride
                total = total + padded[:, i : i + tall, j : j + wide] * kernel[tap_row, tap_column]
        return total

    phases = [jnp.stack([phase(row, column) for column in range(stride)], 3) for row in range(stride)]
    whole = jnp.stack(phases, 2).reshape(batch, tall * stride, wide * stride, channels)
    back = whole[:, top : top + height, left : left + width]
    if trained is None:
        return back, None
    return back, jax.vjp(lambda k: _taps(images, k, stride), kernel)[1](cotangent)[0]


_shifted_sum.defvjp(_shifted_sum_forward, _shifted_sum_backward, symbolic_zeros=True)


def _max_three(images: jax.Array, axis: int) -> jax.Array:
    """Maximum of every second element of an axis and its two neighbours, as a maximum of phases.

    The gradient of XLA's window reduction scatters, which costs a CPU ten times as much.
    """
    length = images.shape[axis]
    pads = [(0, 0)] * images.ndim
    pads[axis] = (2, length % 2)
    padded = jnp.pad(images, pads, constant_values=-jnp.inf)
    cells = padded.shape[axis] // 2
    pairs = padded.reshape(*images.shape[:axis], cells, 2, *images.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, phase, axis + 1, keepdims=False) for phase in (0, 1))
    before = lax.slice_in_dim(odd, 0, cells - 1, axis=axis)
    centre, after = (lax.slice_in_dim(phase, 1, cells, axis=axis) for phase in (even, odd))
    return jnp.maximum(jnp.maximum(before, centre), after)
