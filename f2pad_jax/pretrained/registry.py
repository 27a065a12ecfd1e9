"""The registry of weights: what each name is, where its file comes from, how it is told from others."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from f2pad_jax.errors import InputError
from f2pad_jax.extractor import Features
from f2pad_jax.networks import efficientnet, resnet
from f2pad_jax.pretrained import key_maps


@dataclass(frozen=True)
class Entry:
    """One entry of `weights/registry.toml`.

    Attributes:
      name: what users call the network.
      key_map: name of the rule that turns the file's names into a parameter tree.
      file: usual name of the source file.
      url: where the source is published.
      sha256: digest of the source, or as much of its beginning as is known.
      licence: SPDX identifier.
      size: bytes of the source, where known.
      package: Python distribution that holds the file; None where the user imports it.
      version: version of that distribution.
    """

    name: str
    key_map: str
    file: str
    url: str
    sha256: str
    licence: str
    size: int | None = None
    package: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Network:
    """The code behind a name: a definition, its pure function, its parameter shapes and its key map."""

    spec: Any
    apply: Callable[..., Features]
    shapes: Callable[[Any], dict[str, Any]]
    key_map: Callable[[Any], key_maps.KeyMap]


NETWORKS = {
    "efficientnet_lite0": Network(
        efficientnet.LITE0, efficientnet.apply, efficientnet.shapes, key_maps.efficientnet_pytorch
    ),
    "resnet18": Network(resnet.RESNET18, resnet.apply, resnet.shapes, key_maps.torchvision_resnet),
}


@cache
def registry() -> dict[str, Entry]:
    """Every entry by name, from the installed `f2pad_jax.weights` or the `weights/` of a source checkout."""
    try:
        text = resources.files("f2pad_jax.weights").joinpath("registry.toml").read_text("utf-8")
    except ModuleNotFoundError:
        text = (Path(__file__).parents[2] / "weights" / "registry.toml").read_text("utf-8")
    return {name: Entry(name, **fields) for name, fields in tomllib.loads(text).items()}


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
      InputError: no such name.
    """
    try:
        return registry()[name]
    except KeyError:
        raise InputError("no such extractor", where=name, mend=f"choose from {', '.join(registry())}") from None
