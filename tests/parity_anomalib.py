"""anomalib itself beside our formulae of it and beside imported detectors; run by hand, in two environments.

    python tests/parity_anomalib.py make FOLDER PICTURES [WEIGHTS]   # with anomalib: trains, saves checkpoints and maps
    python tests/parity_anomalib.py compare FOLDER                   # with f2pad_jax: prints the largest differences

PICTURES is a folder of normal ones; the last four are not trained on, and are compared. WEIGHTS are those of ResNet-18
with its batch norms folded into the convolutions, NPZ; without them networks have random weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DETECTORS, TRAINED, TESTED = ("padim", "patchcore"), 12, 4


def make(folder: Path, pictures: Path, weights: Path | None = None) -> None:
    """Trains both detectors, and saves their checkpoints, their maps, and what our formulae make of these."""
    import anomalib_formulae as formulae
    import torch
    from anomalib.data import Folder, PredictDataset  # pyright: ignore[reportMissingImports]
    from anomalib.engine import Engine  # pyright: ignore[reportMissingImports]
    from anomalib.models import Padim, Patchcore  # pyright: ignore[reportMissingImports]
    from anomalib.post_processing import PostProcessor  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader

    paths = sorted(pictures.iterdir())[: TRAINED + TESTED]
    for part, chosen in (("train", paths[:TRAINED]), ("new", paths[TRAINED:])):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for path in chosen:  # enlarged, in another aspect, so that the size is changed
            Image.open(path).convert("RGB").resize((330, 400)).save(folder / part / f"{path.stem}.png")
    raw: dict[str, Any] = {"post_processor": PostProcessor(enable_normalization=False), "pre_trained": False}
    for name in DETECTORS:
        torch.manual_seed(0)
        model = Padim(**raw) if name == "padim" else Patchcore("resnet18", coreset_sampling_ratio=0.02, **raw)
        network = model.model.feature_extractor.feature_extractor
        state = formulae.network(name).state_dict()
        network.load_state_dict(state if weights is None else _unfolded(weights, state))
        none: Any = {"num_workers": 0, "test_split_mode": "none", "val_split_mode": "none"}
        data = Folder("set", root=folder, normal_dir="train", train_batch_size=4, **none)
        engine = Engine(accelerator="cpu", default_root_dir=folder / "engine", logger=False, limit_val_batches=0)
        engine.fit(model=model, datamodule=data)
        engine.trainer.save_checkpoint(folder / f"{name}.ckpt")
        loader = DataLoader(PredictDataset(folder / "new"), collate_fn=PredictDataset(folder / "new").collate_fn)
        maps: dict[str, Any] = {}
        for batch in engine.predict(model=model, dataloaders=loader):
            for path, values in zip(batch.image_path, batch.anomaly_map, strict=True):
                maps[Path(path).name] = np.squeeze(values.cpu().numpy())
        np.savez(folder / f"{name}.npz", **maps)
        state = {key: leaf for key, leaf in model.state_dict().items() if not key.startswith("model.feature_extractor")}
        seen = np.stack([np.asarray(Image.open(folder / "new" / key)) for key in maps])
        features, theirs = formulae.embedding(name, network, seen, (256, 256)), np.stack([*maps.values()])
        ours = formulae.score_map(state, features, (256, 256))
        print(f"{name}: our formulae differ by {_difference(ours, theirs):.1e} of anomalib's scores")


def _unfolded(weights: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The entries of a network with these weights, whose batch norms add the biases and do nothing else."""
    import torch

    arrays = np.load(weights)
    constants = {"weight": 1.0, "running_mean": 0.0, "running_var": 1 - 1e-5, "num_batches_tracked": 0}

    def entry(key: str) -> Any:
        if key in arrays:
            return torch.from_numpy(arrays[key])
        module, _, kind = key.rpartition(".")
        folded = f"{module.replace('bn', 'conv').replace('downsample.1', 'downsample.0')}.bias"
        return torch.from_numpy(arrays[folded]) if kind == "bias" else torch.full_like(state[key], constants[kind])

    return {key: entry(key) for key in state}


def compare(folder: Path) -> None:
    """Imports the checkpoints, and prints how far their maps are from anomalib's."""
    import f2pad_jax as f2
    from f2pad_jax.data.images import read_image
    from f2pad_jax.sights import score_maps

    normals = np.stack([read_image(path) for path in sorted((folder / "train").iterdir())])
    for name in DETECTORS:
        maps = np.load(folder / f"{name}.npz")
        model = f2.fit(normals, **f2.load_trained(folder / f"{name}.ckpt")._asdict())
        ours = score_maps(model, np.stack([read_image(folder / "new" / key) for key in maps.files]))
        print(f"{name}: imported maps differ by {_difference(ours, np.stack([maps[key] for key in maps.files])):.1e}")


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the value itself."""
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))


if __name__ == "__main__":
    {"make": make, "compare": compare}[sys.argv[1]](*map(Path, sys.argv[2:]))
