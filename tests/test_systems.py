"""What systems do to programs: disks that are full or read-only, odd consoles, links, pipes, and two at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import a_result

from f2pad_jax import evaluation, picture_jobs
from f2pad_jax.checkpoint import check_target
from f2pad_jax.cli import main
from f2pad_jax.data.folders import find_images, list_images
from f2pad_jax.data.images import read_image, write_png
from f2pad_jax.data.synthesize import write_category
from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.model import Model
from f2pad_jax.model_file import save_model
from f2pad_jax.output import make_folder, make_private, owned
from f2pad_jax.segmentation import Segmentation
from f2pad_jax.startup import prepare_jax
from f2pad_jax.weights import cache

DISKS = """
import sys
import numpy as np
from pathlib import Path
from f2pad_jax.checkpoint import load_arrays, save_arrays
from f2pad_jax.errors import InputError
from f2pad_jax.output import append_line, make_folder, owned, write_bytes
from f2pad_jax.startup import prepare_jax
from f2pad_jax.weights import cache

small, fixed = Path(sys.argv[1]), Path(sys.argv[2])
little, large = ({"x": np.random.default_rng(0).integers(0, 256, n, np.uint8)} for n in (3, 10**6))
save_arrays(small / "m", little, {}, kind="model", version=1)
prepare_jax()
attempts = {
    "model": lambda: save_arrays(small / "m", large, {}, kind="model", version=1),
    "file": lambda: write_bytes(small / "a.png", bytes(10**6)),
    "weights": lambda: cache.store("resnet18", little, source="f", digest="0" * 64),
    "line": lambda: append_line(small / "a.jsonl", "x" * 10**6),
    "fixed model": lambda: save_arrays(fixed / "m", little, {}, kind="model", version=1),
    "fixed file": lambda: write_bytes(fixed / "a.png", b"x"),
    "folder": lambda: make_folder(fixed / "out"),
    "lock": lambda: owned(fixed).__enter__(),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except InputError as error:
        print(f"{name}: {error.what}")
assert load_arrays(small / "m", kind="model", version=1)[0]["x"].size == 3
print(*sorted(path.name for path in small.iterdir()))
"""


def test_disks_that_are_full_or_read_only_are_one_line_each(tmp_path: Path) -> None:
    """On real ones, where this system lets us make them."""
    for name in ("small", "fixed"):
        (tmp_path / name).mkdir()
    places = f"mount -t tmpfs -o size=64k none {tmp_path}/small && mount -t tmpfs -o ro none {tmp_path}/fixed"
    own = os.environ | {"F2PAD_CACHE": str(tmp_path / "fixed/cache")}
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", places], check=False).returncode:
        pytest.skip("file systems cannot be made here")
    run = f'{places} && exec {sys.executable} -c "$0" {tmp_path}/small {tmp_path}/fixed'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", run, DISKS], env=own, capture_output=True, text=True, check=False
    )
    full, fixed = "cannot be written (No space left on device)", "cannot be written (Read-only file system)"
    assert done.stdout.splitlines() == [
        f"model: {full}",
        f"file: {full}",
        f"weights: {fixed}",
        f"line: {full}",
        f"fixed model: {fixed}",
        f"fixed file: {fixed}",
        "folder: cannot be made (Read-only file system)",
        f"lock: {fixed}",
        "a.jsonl m",
    ]
    assert done.stderr == ""


def test_a_cache_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path))
    arrays = {"x": np.zeros(1, np.float32)}
    make_private(tmp_path / "weights")
    with owned(tmp_path / "weights"), pytest.raises(InputError, match=f"process {os.getpid()} on .* writes there"):
        cache.store("resnet18", arrays, source="f", digest="0" * 64)
    cache.store("resnet18", arrays, source="f", digest="0" * 64)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["resnet18"]


def test_a_cache_that_cannot_be_made_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    prepare_jax()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    with pytest.raises(InputError, match=r"cannot be written .*; name another folder in F2PAD_CACHE"):
        cache.store("resnet18", {"x": np.zeros(1, np.float32)}, source="f", digest="0" * 64)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_of_another_encoding_shows_what_it_can(encoding: str, tmp_path: Path) -> None:
    own = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    for words, status in ((["segment", "--help"], 0), (["fit", "--help"], 0), (["é日\udcff", "--out", "x"], 2)):
        command = [sys.executable, "-m", "f2pad_jax", *map(os.fsencode, words)]
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, check=False)
        assert done.returncode == status
        assert b"Traceback" not in done.stderr
        text = (done.stdout + done.stderr).decode(encoding)
        assert text.startswith("usage: " if status == 0 else "f2pad: error: ")
        assert len(text.splitlines()) == 1 or status == 0


def test_folders_with_links_to_themselves_and_pipes_are_read_to_their_end(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "deep/deeper").mkdir(parents=True)
    for name in ("a.png", "deep/b.png", "deep/deeper/c.png"):
        write_png(folder / name, np.zeros((2, 2, 3), np.uint8))
    (folder / "self").symlink_to(folder)
    (folder / "deep/up.png").symlink_to(folder)
    (folder / "round.png").symlink_to(folder / "round.png")
    os.mkfifo(folder / "pipe.png")
    lost = "round.png is a link to nothing; fetch"
    with pytest.warns(InputWarning, match="passed over"), pytest.warns(InputWarning, match=lost):
        assert [path.name for path in list_images([folder])] == ["a.png"]
    linked = "set: folders that are links are passed over: up.png, self; put the folders themselves there"
    with pytest.warns(InputWarning, match=lost), pytest.warns(InputWarning, match=linked):
        assert [path.name for path in find_images(folder)] == ["a.png", "b.png", "c.png"]
    for name in ("round.png", "pipe.png", "deep/up.png"):
        with pytest.raises(InputError, match="no such file|is not a file"):
            read_image(folder / name)
    with pytest.raises(InputError, match="cannot be made"):
        make_folder(folder / "pipe.png")
    with pytest.raises(InputError, match="exists already and is no model"):
        check_target(folder / "pipe.png", kind="model")


def test_what_cannot_be_trusted_is_told_on_the_terminal_and_in_the_metrics(
    tmp_path: Path, tiny_model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    size = tiny_model.shape[0]
    normals, cases = texture_category("brick", train=8, test=4, size=size)
    tests = [("color", str(k), image, mask) for k, (image, mask, _) in enumerate(cases)]
    tests += [("good", str(k), normal, np.zeros((size, size), bool)) for k, normal in enumerate(normals[:4])]
    write_category(tmp_path / "brick", np.stack([normals[0]] * 5), tests)
    save_model(tiny_model, tmp_path / "model")
    category, model = str(tmp_path / "brick"), str(tmp_path / "model")

    def spoiled(peaks: Sequence[float], status: str) -> None:
        def segment(model: Model, images: Sequence[np.ndarray], **_: Any) -> list[Segmentation]:
            none = np.zeros(images[0].shape[:2], bool)
            maps = [np.linspace(0, peak, none.size, dtype=np.float32).reshape(none.shape) for peak in peaks]
            return [
                a_result(image, none, score_map=scores, status=status)
                for image, scores in zip(images, maps, strict=True)
            ]

        monkeypatch.setattr(evaluation, "segment", segment)
        monkeypatch.setattr(picture_jobs, "segment", segment)

    failed = "the solve of 8 of 8 pictures ended in numbers that are not finite"
    equal, alike = "the detector gives all 8 pictures the same score", "normal pictures score as high as defective ones"
    of_training = "of 5 training pictures only 1 differ; thresholds will be too low"
    # Defective pictures come first: "color" stands before "good".
    for peaks, status, wanted in (
        ([1.0] * 8, "non-finite", [failed, equal, alike]),
        ([1, 2, 3, 4, 1, 5, 6, 7], "converged", [alike]),
        ([5, 6, 7, 8, 1, 2, 3, 4], "converged", []),
    ):
        spoiled(peaks, status)
        assert main(["evaluate", model, category, "--out", str(tmp_path / "measured")]) == 0
        (run,) = json.loads((tmp_path / "measured/metrics.json").read_text())["runs"]
        assert run["warnings"] == wanted
        told = capsys.readouterr().err
        assert [line for line in wanted if f"f2pad: warning: brick, padim: {line}\n" in told] == wanted
        pictures = [f"{category}/test/{kind}" for kind in ("color", "good")]
        assert main(["segment", model, *pictures, "--out", str(tmp_path / "results")]) == 0
        told = capsys.readouterr().err
        wanted = [line for line in wanted if line != alike]  # nobody says which are normal
        assert told == "".join(f"f2pad: warning: {line}\n" for line in wanted)
    fit = ["fit", category, "--detector", "padim", "--extractor", "efficientnet_lite0", "--size", str(size)]
    assert main([*fit, "--out", str(tmp_path / "copies")]) == 0
    assert f"f2pad: warning: {of_training}\n" in capsys.readouterr().err
