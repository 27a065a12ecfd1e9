"""torchvision, which timm and transformers import, beside any build of torch."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

_kept: list[Any] = []  # what is defined is forgotten with its library


def import_torchvision() -> ModuleType:
    """The module, or a skip where torch is absent.

    Its compiled operators fit one build of torch: those for CUDA do not load beside a torch for CPUs, and then the
    import fails for want of one. Networks need none of them.
    """
    torch = pytest.importorskip("torch")
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _kept.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _kept[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision
