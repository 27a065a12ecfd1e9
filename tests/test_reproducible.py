"""The same seed on the same machine gives the same bytes: model folder and results, in whatever order and process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process that fits a model, writes it, and segments pictures in an order; it prints digests, by picture.
PROCESS = """
import hashlib, json, sys
import jax, numpy as np
from pathlib import Path
from solving import tiny_extractor
from f2pad_jax.checkpoint import seal
from f2pad_jax.data.textures import texture_category
from f2pad_jax.fitting import fit
from f2pad_jax.model_file import save_model
from f2pad_jax.segmentation import segment

out, order = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
normals, cases = texture_category("brick", train=12, test=len(order), size=48)
model = fit(normals, detector="padim", extractor=tiny_extractor(), seed=3)
save_model(model, out)
pictures = [cases[k][0] if k % 2 else cases[k][2] for k in range(len(order))]  # some are normal
found = dict(zip(order, segment(model, [pictures[k] for k in order]), strict=True))

def digest(result):
    parts = (result.mask, result.normal, result.anomaly, result.score_map, result.refined_map)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()

print(json.dumps({
    "devices": jax.local_device_count(),
    "solved": sum(result.iterations > 0 for result in found.values()),
    "model": seal(out),
    "results": [digest(found[k]) for k in sorted(found)],
}))
"""


def start(out: Path, devices: int, cache: Path | None, order: list[int]) -> subprocess.Popen[str]:
    """A process with so many devices, and a folder of compiled code or none."""
    tests = Path(__file__).parent
    own = {
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
    }
    rest = {name: text for name, text in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    if cache is not None:
        rest["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-c", PROCESS, str(out), *map(str, order)]
    return subprocess.Popen(command, env=rest | own, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("devices", "first"), [(1, "kept"), (2, "none")])
def test_the_same_seed_gives_the_same_bytes(devices: int, first: str, tmp_path: Path) -> None:
    """In another order, with code that the first process has kept, or with code kept where the first kept none."""
    cache = tmp_path / "cache"
    told = []
    for name, order in (("first", [0, 1, 2, 3, 4]), ("second", [3, 0, 4, 2, 1])):
        kept = cache if name == "second" or first == "kept" else None
        process = start(tmp_path / name, devices, kept, order)
        told.append(json.loads(process.communicate()[0]))
        assert process.returncode == 0
        assert cache.is_dir() == (kept is not None)
    assert told[0] == told[1]
    assert (told[0]["devices"], told[0]["solved"]) == (devices, 2)
    files = {path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file()}
    assert len(files) > 5
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
