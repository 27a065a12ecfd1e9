"""The frozen feature extractor that detectors are built on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, get_args

import jax
import jax.numpy as jnp

from f2pad_jax.errors import InputError
from f2pad_jax.networks.layers import halved

Precision = Literal["parity", "fast", "bf16"]
Params = dict[str, Any]
Features = tuple[jax.Array, ...]


class NetworkSpec(Protocol):
    """What an extractor must know of a network's definition; hashable, so static under `jit`.

    Maps may share a stride, and one is enough. A definition with attention also has a property `everywhere`, True.
    """

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map, finest map first."""
        ...

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per feature position along one side, finest map first."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extractor:
    """An ImageNet network that is never trained: a pytree whose only leaves are its parameters.

    Attributes:
      params: nested dict of float32 arrays, batch norms already folded into the convolutions.
      name: name in the registry of weights.
      network: pure function `(params, images, *, spec) -> feature maps`.
      spec: the network's definition.
      digest: SHA-256 of the file the parameters came from, in hexadecimal.
      precision: of its products, in the gradient too: "parity", full float32; "fast", what the device does quickest
        with float32 (TF32 on a GPU, float32 on a CPU); "bf16", dense kernels and activations in bfloat16 (see
        `networks.layers.halved`). Feature maps, and all that is made of them, are float32.
      kept: whether a model folder holds the parameters too, as those of a detector's own checkpoint.
    """

    params: Params
    name: str = field(metadata={"static": True})
    network: Callable[..., Features] = field(metadata={"static": True})
    spec: NetworkSpec = field(metadata={"static": True})
    digest: str = field(metadata={"static": True})
    precision: Precision = field(default="parity", metadata={"static": True})
    kept: bool = field(default=False, metadata={"static": True})

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map, finest map first."""
        return self.spec.channels

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per feature position along one side, finest map first."""
        return self.spec.strides

    @property
    def everywhere(self) -> bool:
        """Whether a pixel changes the features of all positions, as with attention; else, above all, of near ones."""
        return getattr(self.spec, "everywhere", False)

    def apply(self, params: Params, images: jax.Array) -> Features:
        """Feature maps of a batch, finest first, as a pure function of both arguments.

        Args:
          params: a tree like `self.params`.
          images: (B, H, W, 3) float32 RGB, ImageNet-normalised.

        Returns:
          One (B, H/stride, W/stride, C) float32 array per entry of `channels`.
        """
        if self.precision == "bf16":
            params = halved(params)
        with jax.default_matmul_precision("highest" if self.precision == "parity" else "default"):
            maps = self.network(params, images, spec=self.spec)
        return tuple(m.astype(jnp.result_type(images)) for m in maps)

    def __call__(self, images: jax.Array) -> Features:
        """Feature maps of a batch with the extractor's own parameters; see `apply`."""
        return self.apply(self.params, images)


def map_shapes(spec: NetworkSpec, shape: tuple[int, int]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes (H_k, W_k, C_k) of the feature maps of a picture of this height and width, finest first.

    Raises:
      ValueError: a side is no multiple of the coarsest stride.
    """
    if any(side % spec.strides[-1] for side in shape):
        raise ValueError(f"sides of {shape} are no multiples of {spec.strides[-1]}")
    sides = [(shape[0] // stride, shape[1] // stride) for stride in spec.strides]
    return tuple(jax.ShapeDtypeStruct((*side, c), jnp.float32) for side, c in zip(sides, spec.channels, strict=True))


def check_precision(name: str) -> Precision:
    """The precision of that name; `InputError` that lists the names for any other."""
    if name not in (known := get_args(Precision)):
        raise InputError(f"no precision is called {name!r}", hint=f"choose one of {', '.join(known)}")
    return cast(Precision, name)
