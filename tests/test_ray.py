"""Pictures over a Ray cluster of two workers, one of which is killed: the same bytes as one machine.

Where Ray is not installed, a worker is called in this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from f2pad_jax.cli import main
from f2pad_jax.data.images import write_png
from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.model import Model
from f2pad_jax.model_file import load_model, save_model
from f2pad_jax.picture_jobs import Job, Picture, segment_here
from f2pad_jax.ray_work import PARQUET, ROUNDS, Share, Worker, pieces, segment_on_ray, shares, write_parquet

COUNT = 9
COMPILED = "F2PAD_TESTS_COMPILED"  # names the folder of compiled code, as conftest.py does
LOST = 7  # a picture that cannot be read


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_model: Model) -> Path:
    """A model, and pictures by relative names: some with a defect, one that is no picture, one to be warned of."""
    work = tmp_path_factory.mktemp("ray")
    save_model(tiny_model, work / "model")
    (work / "pictures").mkdir()
    cases = texture_category("brick", test=COUNT, train=8, size=64)[1]
    for k, (image, _, normal) in enumerate(cases):
        write_png(work / f"pictures/{k:02}.png", image if k % 3 else normal)
    (work / f"pictures/{LOST:02}.png").write_bytes(b"no picture")
    Image.fromarray(np.full((64, 64), 900, np.uint16)).save(work / "pictures/dark.png")
    return work


def _start(work: Path, *options: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with one device for each worker."""
    command = [sys.executable, "-m", "f2pad_jax", *options]
    own = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    own |= {"JAX_COMPILATION_CACHE_DIR": os.environ[COMPILED], "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    env = {name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"} | own
    return subprocess.Popen(command, cwd=work, env=env, stderr=subprocess.PIPE, text=True)


def _records(out: Path) -> list[dict[str, Any]]:
    """Records that are whole, in the order of the file."""
    path = out / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _files(out: Path) -> dict[str, bytes]:
    """Files of pictures, and the COCO set."""
    kinds = (".png", ".tiff", ".json")
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in kinds}


def _workers(work: Path) -> list[int]:
    """Processes that have gone to a folder and are workers of Ray."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").resolve() == work.resolve() and b"ray::MapWorker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="workers are found by Linux's list of processes")
def test_two_workers_of_which_one_is_killed_write_the_bytes_of_one_machine(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(work)
    asked = ("segment", "model", "pictures", "--out")
    before: list[dict[str, Any]] = []
    with _start(work, *asked, "cluster", "--ray", "--workers", "2") as cluster:
        until = time.monotonic() + 300
        while not before and cluster.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
            before = _records(work / "cluster")
        victims = _workers(work)
        assert len(victims) == 2, "both work"
        os.kill(victims[0], signal.SIGKILL)
        told = cluster.communicate(timeout=300)[1]
        assert cluster.returncode == 2, told
    assert main([*asked, "alone"]) == 2
    lines = [line for line in told.splitlines() if line.startswith("f2pad: ")]  # Ray has lines of its own
    assert sorted(lines) == sorted(capsys.readouterr().err.splitlines())
    assert any("dark.png" in line for line in lines)
    assert "Traceback" not in told

    records, wanted = _records(work / "cluster"), _records(work / "alone")
    assert 0 < len(before) < len(records) == COUNT + 1
    assert [record | {"seconds": 0} for record in records] == [record | {"seconds": 0} for record in wanted]
    assert [record for record in before if record not in records] == [], "what was done is not done again"
    assert _files(work / "cluster") == _files(work / "alone")
    assert sum(bool(record.get("defects")) for record in records) > 3
    assert not list((work / "cluster").glob(".f2pad*"))

    pd = pytest.importorskip("pandas")
    table = pd.read_parquet(work / "cluster" / PARQUET)
    assert list(table["image"]) == [record["image"] for record in records]
    assert list(table["verdict"].fillna("")) == [record.get("verdict", "") for record in records]
    assert [len(each) for each in table["defects"].dropna()] == [len(r["defects"]) for r in records if "defects" in r]

    assert main([*asked, "cluster", "--resume"]) == 2
    assert _records(work / "cluster") == records, "one machine goes on where a cluster ended"


def test_a_worker_does_what_one_machine_does(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    model = load_model(work / "model")
    pictures = [Picture(Path(f"pictures/{name}.png"), name) for name in ("02", "07", "dark", "03")]
    (work / "here").mkdir()
    (work / "there").mkdir()
    wanted: dict[int, Any] = {}
    with pytest.warns(InputWarning, match="dark"):
        segment_here(Job(model, Path("here"), "m"), pictures, wanted.__setitem__)
    worker = Worker(Job(model, Path("there"), "m"), pictures, str(work))
    found = worker({"index": np.array([3, 1, 2])}), worker({"index": np.array([0])})
    rows = {
        index: json.loads(facts) for each in found for index, facts in zip(each["index"], each["facts"], strict=True)
    }
    assert sorted(rows) == sorted(wanted) == [0, 1, 2, 3]
    assert all(rows[index] | {"seconds": 0} == wanted[index] | {"seconds": 0} for index in rows)
    assert rows[1]["status"] == "failed"
    assert _files(work / "here") == _files(work / "there")
    told = [line for each in found for lines in each["warnings"] for line in json.loads(lines)]
    assert [line["where"] for line in told] == ["pictures/dark.png"]
    assert "16 bits" in str(InputWarning(**told[0]))


@pytest.mark.parametrize(
    ("resources", "machines", "workers", "wanted"),
    [
        ({"CPU": 8.0}, 1, None, (1, Share(8, 0))),
        ({"CPU": 8.0}, 1, 3, (3, Share(2, 0))),
        ({"CPU": 64.0}, 4, None, (4, Share(16, 0))),
        ({"CPU": 8.0, "GPU": 2.0}, 1, None, (2, Share(4, 1))),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 1, (1, Share(8, 1))),
        ({"CPU": 1.0, "GPU": 4.0}, 1, None, (4, Share(1, 1))),
    ],
)
def test_shares_of_a_cluster(
    resources: dict[str, float], machines: int, workers: int | None, wanted: tuple[int, Share]
) -> None:
    assert shares(resources, machines, workers) == wanted


def test_more_workers_than_there_are_cores_are_refused() -> None:
    with pytest.raises(InputError, match="3 workers are more than the cluster's 2 cores; lower --workers"):
        shares({"CPU": 2.0}, 1, 3)
    with pytest.raises(InputError, match="3 workers are more than the cluster's 2 accelerators"):
        shares({"CPU": 8.0, "GPU": 2.0}, 1, 3)


@pytest.mark.parametrize(("count", "workers", "cores"), [(0, 2, 1), (1, 2, 1), (17, 2, 1), (100, 3, 4), (500, 2, 1)])
def test_pieces_hold_each_picture_once_and_are_enough_for_all(count: int, workers: int, cores: int) -> None:
    model = cast(Model, SimpleNamespace(shape=(64, 64), windowed=False))
    pictures = [Picture(Path(f"{k}.png"), str(k)) for k in range(count)]
    found = list(pieces(Job(model, Path()), pictures, workers, Share(cores, 0)))
    assert [index for piece in found for index in piece] == list(range(count))
    assert all(0 < len(piece) <= 32 for piece in found)
    if count >= ROUNDS * workers * cores:
        assert len(found) >= (ROUNDS - 1) * workers
        assert all(len(piece) >= cores for piece in found[:-1])


def test_records_of_any_kind_are_a_table(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    defect = {"area": 3, "box": [1, 2, 3, 1], "rle": {"size": [4, 4], "counts": "05"}}
    records: Sequence[dict[str, Any]] = [
        {"image": "a.png", "status": "failed", "error": "is no picture"},
        {"image": "b\udcff.png", "status": "converged", "defects": [], "white_level": None},
        {"image": "c.png", "status": "converged", "defects": [defect, defect | {"micrometres": {"area": 1.5}}]},
    ]
    write_parquet(tmp_path / "some.parquet", records)
    table = pd.read_parquet(tmp_path / "some.parquet")
    assert list(table.columns) == ["image", "status", "error", "defects", "white_level"]
    assert table["image"].tolist() == ["a.png", "b\\udcff.png", "c.png"]
    other = table["defects"].tolist()[2][1]
    assert list(other["box"]) == [1, 2, 3, 1]
    assert other["micrometres"] == {"area": 1.5}
    write_parquet(tmp_path / "none.parquet", records[:1])
    assert len(pd.read_parquet(tmp_path / "none.parquet")) == 1


def test_workers_without_a_cluster_are_refused(work: Path, capsys: pytest.CaptureFixture) -> None:
    asked = ["segment", str(work / "model"), str(work / "pictures"), "--out", str(work / "none"), "--workers", "2"]
    assert main(asked) == 2
    assert capsys.readouterr().err == "f2pad: error: --workers goes with --ray; add --ray, or leave it out\n"


def test_without_ray_one_line_says_so_even_where_nothing_is_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="--ray needs Ray; pip install"):
        segment_on_ray(Job(cast(Model, None), Path()), [], lambda index, facts: None)
