"""What anomalib 2.7 does, written again in torch, and checkpoints as Lightning writes them.

`parity_anomalib.py` compares it with anomalib itself.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional

LAYERS = {"padim": ["layer1", "layer2", "layer3"], "patchcore": ["layer2", "layer3"]}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def network(detector: str, backbone: str = "resnet18", *, seed: int = 0) -> nn.Module:
    """timm's network without its last layers, with random weights and statistics."""
    indices = [int(layer[-1]) for layer in LAYERS[detector]]
    torch.manual_seed(seed)
    made = timm.create_model(backbone, pretrained=False, features_only=True, exportable=True, out_indices=indices)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return made.eval()


@torch.no_grad()
def embedding(detector: str, made: nn.Module, pictures: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Features of all layers on the finest grid, (N, C, h, w), of uint8 pictures (N, H, W, 3)."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    maps = made(pixels)
    if detector == "padim":
        grown = [functional.interpolate(m, maps[0].shape[-2:], mode="nearest") for m in maps]
    else:
        pooled = [functional.avg_pool2d(m, 3, 1, 1, count_include_pad=True) for m in maps]
        grown = [functional.interpolate(m, maps[0].shape[-2:], mode="bilinear") for m in pooled]
    return torch.cat(grown, 1)


def gaussian() -> torch.Tensor:
    """The kernel of σ = 4, (1, 1, 33, 33)."""
    weights = torch.exp(-((torch.arange(33.0) - 16) ** 2) / 32)
    weights = weights / weights.sum()
    return torch.outer(weights, weights)[None, None]


def fit_padim(features: torch.Tensor, kept: int) -> dict[str, torch.Tensor]:
    """Entries of the state dict after training."""
    chosen = torch.randperm(features.shape[1])[:kept]
    normal = features[:, chosen].flatten(2)  # (N, D, P)
    delta = (normal - normal.mean(0)).permute(2, 0, 1)
    covariance = delta.mT @ delta / (len(normal) - 1) + 0.01 * torch.eye(kept) + 1e-5 * torch.eye(kept)
    return {
        "model.idx": chosen,
        "model.gaussian.mean": normal.mean(0),
        "model.gaussian.inv_covariance": torch.linalg.inv(covariance),
    }


def fit_patchcore(features: torch.Tensor, kept: int) -> dict[str, torch.Tensor]:
    """Entries of the state dict after training, with a bank drawn at random."""
    patches = features.permute(0, 2, 3, 1).flatten(0, 2)
    return {"model.memory_bank": patches[torch.randperm(len(patches))[:kept]].clone()}


def score_map(state: dict[str, torch.Tensor], features: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """The maps of pictures with such features, (N, H, W) float32."""
    grid = features.shape[-2:]
    if "model.idx" in state:
        delta = (features[:, state["model.idx"]].flatten(2) - state["model.gaussian.mean"]).permute(2, 0, 1)
        squares = ((delta @ state["model.gaussian.inv_covariance"]) * delta).sum(2).T
        scores = squares.clamp(0).sqrt().unflatten(1, grid)[:, None]
        scores = functional.interpolate(scores, size, mode="bilinear", align_corners=False)
    else:
        patches = features.permute(0, 2, 3, 1).flatten(0, 2)
        nearest = torch.cdist(patches, state["model.memory_bank"], compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        scores = functional.interpolate(nearest.reshape(-1, 1, *grid), size, mode="nearest")
    padded = functional.pad(scores, (16, 16, 16, 16), mode="reflect")
    return functional.conv2d(padded, gaussian())[:, 0].numpy()


def transform(size: Any, *more: str) -> dict[str, Any]:
    """What anomalib notes of its default transform, and more steps of it."""
    steps = [
        ("Resize", {"size": list(size), "interpolation": "bilinear", "max_size": None, "antialias": True}),
        *((name, {"size": 64}) for name in more),
        ("Normalize", {"mean": MEAN, "std": STD, "inplace": False}),
    ]
    noted = [{"class_path": f"torchvision.transforms.v2.{name}", "init_args": facts} for name, facts in steps]
    return {"class_path": "torchvision.transforms.v2.Compose", "init_args": {"transforms": noted}}


def checkpoint(detector: str, made: nn.Module, state: dict[str, torch.Tensor], size: Any) -> dict[str, Any]:
    """All that a Lightning checkpoint of anomalib 2.7 holds, to be saved by `torch.save`."""
    inner = {f"model.feature_extractor.feature_extractor.{name}": leaf for name, leaf in made.state_dict().items()}
    limits = ("_image_threshold", "image_min", "image_max", "pixel_min", "pixel_max")
    post = {f"post_processor.{name}": torch.tensor(float("nan")) for name in limits}
    return {
        "epoch": 0,
        "global_step": 3,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(
            {"_is_fitted": torch.tensor([True]), **post, **state, **inner}
            | {"model.anomaly_map_generator.blur.kernel": gaussian()}
        ),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_loop.batch_progress": {"is_last_batch": True}}},
        "callbacks": {"PostProcessor": OrderedDict(image_min=torch.tensor(1.5))},
        "optimizer_states": [{}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"backbone": "resnet18", "layers": LAYERS[detector], "root": Path("datasets")},
        "anomalib_components_enabled": {"pre_processor": True, "post_processor": True},
        "anomalib_pre_processor_config": {"transform": transform(size)},
    }
