"""The registry of weights: what each name is, where its file comes from, how it is told from others."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from f2pad_jax.errors import InputError
from f2pad_jax.networks import efficientnet, mae, resnet, vit
from f2pad_jax.weights import key_maps, mae_keys, vit_keys

Kind = Literal["extractor", "inpainter"]


@dataclass(frozen=True)
class Entry:
    """One entry of `weights/registry.toml`.

    Attributes:
      name: what users call the network.
      file: usual name of the source file.
      url: the source itself; the page that publishes it where it comes from the Hub or a package.
      licence: SPDX identifier; "LicenseRef-DINOv3" is Meta's own DINOv3 License, for which SPDX has none.
      sha256: digest of the source, or as much of its beginning as is known; empty where nothing is.
      kind: what the network is for.
      size: bytes of the source, where known.
      hub: repository on the Hugging Face Hub that holds the file.
      package: Python distribution that holds the file.
      version: version of that distribution.
    """

    name: str
    file: str
    url: str
    licence: str
    sha256: str = ""
    kind: Kind = "extractor"
    size: int | None = None
    hub: str | None = None
    package: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Network:
    """The code behind a name.

    Attributes:
      spec: the network's definition.
      apply: its pure function.
      shapes: the tree of parameter shapes of a definition.
      convert: from the arrays of a source file to such a tree; raises a `ValueError` of all that is wrong.
      check: refuses files, given their arrays and path, whose names fit but not their meaning.
      known: names of arrays by which a file is recognised, whatever wraps them.
    """

    spec: Any
    apply: Callable[..., Any]
    shapes: Callable[[Any], dict[str, Any]]
    convert: Callable[[Mapping[str, np.ndarray]], dict[str, Any]]
    check: Callable[[Mapping[str, np.ndarray], Path], None] = lambda state, path: None
    known: frozenset[str] = frozenset()


def _extractor(spec: Any, module: ModuleType, *layouts: Callable[[Any], key_maps.KeyMap]) -> Network:
    def convert(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
        key_map = key_maps.choose(state, [layout(spec) for layout in layouts])
        return key_maps.convert(state, module.shapes(spec), key_map)

    known = frozenset(f"{source.name}.weight" for layout in layouts for source in layout(spec).sources)
    return Network(spec, module.apply, module.shapes, convert, known=known)


def _vit(spec: vit.ViTSpec) -> Network:
    return Network(spec, vit.apply, vit.shapes, partial(vit_keys.convert, spec=spec), known=vit_keys.KNOWN)


def _inpainter(spec: mae.MAESpec) -> Network:
    convert, known = partial(mae_keys.convert, spec=spec), mae_keys.KNOWN
    return Network(spec, mae.reconstruct, mae.shapes, convert, mae_keys.check_targets, known)


NETWORKS = (
    {
        name: _extractor(spec, efficientnet, key_maps.efficientnet_pytorch, key_maps.timm_efficientnet)
        for name, spec in efficientnet.FAMILY.items()
    }
    | {name: _extractor(spec, resnet, key_maps.torchvision_resnet) for name, spec in resnet.FAMILY.items()}
    | {name: _vit(spec) for name, spec in vit.FAMILY.items()}
    | {name: _inpainter(spec) for name, spec in mae.FAMILY.items()}
)


@cache
def registry() -> dict[str, Entry]:
    """Every entry by name, from the installed `f2pad_jax.registry` or the `weights/` of a source checkout."""
    try:
        text = resources.files("f2pad_jax.registry").joinpath("registry.toml").read_text("utf-8")
    except ModuleNotFoundError:
        text = (Path(__file__).parents[2] / "weights" / "registry.toml").read_text("utf-8")
    return {name: Entry(name, **fields) for name, fields in tomllib.loads(text).items()}


def entry(name: str, *, kind: Kind | None = None) -> Entry:
    """The entry of a name.

    Args:
      name: as in the registry.
      kind: what it must be for; anything where None.

    Raises:
      InputError: no such name, or a network for something else.
    """
    known = registry().get(name)
    fitting = [each.name for each in registry().values() if kind in (None, each.kind)]
    if known and name in fitting:
        return known
    what = f"is an {known.kind}, not an {kind}" if known else f"no such {kind or 'network'}"
    raise InputError(what, where=name, hint=f"choose from {', '.join(fitting)}")
