"""Files and folders that are whole or absent, whatever is killed, full, locked or read-only; doubts that are told."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from f2pad_jax import cli, commands, doubts, output
from f2pad_jax.checkpoint import check_target, load_arrays, save_arrays
from f2pad_jax.data.folders import list_images, new_folder
from f2pad_jax.data.images import read_image
from f2pad_jax.errors import InputError
from f2pad_jax.output import make_folder, owned, replaced, temporary_name, write_bytes
from f2pad_jax.startup import prepare_jax
from f2pad_jax.weights.loading import _check_values, import_weights


def _dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    mine, other = temporary_name(tmp_path), tmp_path / ".f2pad-0badhost-1-x"
    dead = str(_dead())
    file, folder = (temporary_name(tmp_path).name.replace(f"-{os.getpid()}-", f"-{dead}-") for _ in range(2))
    (tmp_path / file).write_bytes(b"half")
    (tmp_path / folder / "new").mkdir(parents=True)
    kept = {mine.name, other.name, ".f2pad-x", "model", f".f2pad-{output._host()}-{10**30}-x"}
    for name in kept:
        (tmp_path / name).touch()
    make_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_saving_sweeps_beside_its_target(tmp_path: Path) -> None:
    left = tmp_path / temporary_name(tmp_path).name.replace(f"-{os.getpid()}-", f"-{_dead()}-")
    for make in (
        lambda: save_arrays(tmp_path / "m", {"x": np.zeros(1, np.float32)}, {}, kind="model", version=1),
        lambda: new_folder(tmp_path / "set").__enter__(),
    ):
        left.mkdir()
        make()
        assert not left.exists()


@pytest.mark.parametrize("first", ["load", "sweep"])
def test_a_kill_between_two_renames_loses_nothing(first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that replaces an older one is killed when that is set aside and the new one not yet in its place."""

    def save(value: float) -> None:
        save_arrays(tmp_path / "m", {"x": np.full(1, value, np.float32)}, {}, kind="model", version=1)

    save(1)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            save(2)
    assert not (tmp_path / "m").exists()
    (scratch,) = tmp_path.iterdir()
    scratch.rename(tmp_path / scratch.name.replace(f"-{os.getpid()}-", f"-{_dead()}-"))
    if first == "sweep":
        make_folder(tmp_path)
    assert load_arrays(tmp_path / "m", kind="model", version=1)[0]["x"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_current_folder_is_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (Path(), tmp_path):
        with pytest.raises(InputError, match="is the current folder"):
            check_target(name, kind="model")
        with pytest.raises(InputError, match="is the current folder"), new_folder(name):
            pass
        with pytest.raises(InputError, match="is the current folder"), replaced(name):
            pass
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(InputError, match="where a disk is mounted"):
        check_target(tmp_path / "disk", kind="model")
    check_target(tmp_path / "disk/deep/model", kind="model")
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


OWN = "import sys; from pathlib import Path; from f2pad_jax.output import owned\nwith owned(Path(sys.argv[1])): pass"


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    owner = f"process {os.getpid()} on {socket.gethostname()} writes there"
    with owned(tmp_path):
        with pytest.raises(InputError, match=owner), owned(tmp_path):
            pass
        done = subprocess.run([sys.executable, "-c", OWN, str(tmp_path)], capture_output=True, text=True, check=False)
        assert owner in done.stderr
    with owned(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / output.LOCK).write_text(f"{_dead()}\n{socket.gethostname()}\n")
    with owned(tmp_path):  # whose owner was killed
        pass


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"a\.png: cannot be written \(No space left on device\)"):
        write_bytes(tmp_path / "a.png", b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x"),
            2,
            "out/x: the system refused (No space left on device)",
        ),
        (MemoryError(), 2, "there is not enough memory"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refused(arguments: object) -> int:
        raise error

    monkeypatch.setitem(commands.COMMANDS, "demo", refused)
    assert cli.main(["demo"]) == status
    assert capsys.readouterr().err == f"f2pad: error: {line}\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_and_a_device_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices, target = (tmp_path / "dev").resolve(), tmp_path / "target"
    devices.mkdir()
    target.touch()
    (devices / "stdout").symlink_to(target)  # as where a command is redirected to a file
    monkeypatch.setattr(output, "DEVICES", devices)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", devices / "stdout"):
        with pytest.raises(InputError, match="no file"):
            write_bytes(path, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert (devices / "stdout").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev", "pipe", "target"]


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from f2pad_jax.cli import main; sys.exit(main(['weights', 'list']))"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        done = subprocess.run([sys.executable, "-c", code], stdout=nobody, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (cli.UNREAD, b"")


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_closed_streams_are_no_error() -> None:
    command = 'exec "$0" -m f2pad_jax weights list'
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{command} {closed}", sys.executable], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert bool(done.stdout) == (closed == "2>&-")


def test_without_a_home_there_is_no_cache_and_no_stray_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("F2PAD_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: "~/.cache/f2pad_jax")
    with pytest.raises(InputError, match="no home folder for the cache; name a folder in F2PAD_CACHE"):
        output.user_cache()
    prepare_jax()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert not list(tmp_path.iterdir())


def test_names_that_no_file_can_have_are_one_picture_each(tmp_path: Path) -> None:
    names = [tmp_path / ("x" * 5000), Path("y" * 300 + ".png")]
    assert list_images(names) == names
    for name in names:
        with pytest.raises(InputError, match="no such file"):
            read_image(name)


def test_links_in_a_model_lead_nowhere_else(tmp_path: Path) -> None:
    save_arrays(tmp_path / "m", {"x": np.zeros(1, np.float32)}, {}, kind="model", version=1)
    load_arrays(tmp_path / "m", kind="model", version=1)
    for target in (".", "..", "nowhere", "loop"):
        (tmp_path / "m" / "loop").symlink_to(target)
        with pytest.raises(InputError, match="damaged model .loop is a link to a folder or to nothing"):
            load_arrays(tmp_path / "m", kind="model", version=1)
        (tmp_path / "m" / "loop").unlink()


def test_decoders_are_silent_about_spoiled_tiffs(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    from PIL import Image

    for name in ("tiff_lzw", "tiff_deflate", "jpeg"):
        path = tmp_path / f"{name}.tif"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path, compression=name)
        data = bytearray(path.read_bytes())
        data[200:260] = bytes(60)
        path.write_bytes(data)
        with suppress(InputError):
            read_image(path)
    print("still heard", file=sys.stderr)
    assert capfd.readouterr().err == "still heard\n"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e7, 2e5])
def test_weights_of_no_training_are_refused_by_their_layer(value: float) -> None:
    sizes = np.abs(np.random.default_rng(0).standard_normal((8, 16)))
    _check_values("stem/kernel", sizes)
    sizes[3, 4] = value
    with pytest.raises(ValueError, match="stem/kernel holds"):
        _check_values("stem/kernel", sizes)
    _check_values("bias", np.array([0.0, 200.0]))


def test_a_digest_that_is_asked_for_is_insisted_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="abc is no SHA-256 digest"):
        import_weights("resnet18", tmp_path / "x.npz", sha256="abc")


def test_doubts_name_what_is_wrong() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    assert doubts.of_training(images) == []
    images[1] = images[4]
    assert doubts.of_training(images) == ["of 5 training pictures only 4 differ; thresholds will be too low"]

    def result(peak: float, status: str = "converged"):
        return SimpleNamespace(score_map=np.full((2, 2), peak), status=status)

    defective = np.arange(8) >= 4
    assert doubts.of_results([result(k) for k in range(8)], defective) == []  # pyright: ignore
    (line,) = doubts.of_results([result(8 - k) for k in range(8)], defective)  # pyright: ignore
    assert line == "normal pictures score as high as defective ones"
    lines = doubts.of_results([result(1, "non-finite")] * 3)  # pyright: ignore
    assert lines[0].startswith("the solve of 3 of 3 pictures ended")
    assert lines[1] == "the detector gives all 3 pictures the same score"
    records = [{"status": "failed"}, {"status": "normal", "max_score": 1.0}, {"status": "normal", "max_score": 2.0}]
    assert doubts.of_records(records) == []
