"""The page about a folder of results: whole, offline, one row a picture, and right in a browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from results import a_result

from f2pad_jax import gallery, picture_files
from f2pad_jax.cli import main
from f2pad_jax.errors import InputError
from f2pad_jax.gallery import read_lines, write_report
from f2pad_jax.model import Model
from f2pad_jax.picture_files import segment_files
from f2pad_jax.segmentation import Segmentation

MODEL = cast(Model, SimpleNamespace(threshold=0.5, shape=(24, 40), windowed=False, white_level=None))
NAMES = ("b<script>alert(1)<!--.png", "a & b.png", "good.png", "日本.png")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def _result(image: np.ndarray) -> Segmentation:
    """Marks what is red."""
    mask = image[..., 0] > image[..., 1]
    scores = np.where(mask, image[..., 0], 10).astype(np.float32)
    normal = np.where(mask[..., None], np.uint8(60), image)
    return a_result(
        image,
        mask,
        normal=normal,
        anomaly=(image.astype(np.float32) - normal.astype(np.float32)) / 255,
        score_map=scores,
        threshold=50,
        refined_map=scores * (1 + mask),
        status="converged" if mask.any() else "normal",
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results of four pictures, and a fifth that failed."""
    monkeypatch.setattr(picture_files, "segment", lambda model, images: [_result(image) for image in images])
    paths = []
    for k, name in enumerate(NAMES):
        image = np.full((24, 40, 3), 60, np.uint8)
        if name != "good.png":
            image[5 : 9 + k, 8:20] = (100 + 40 * k, 0, 0)
        picture = io.BytesIO()
        Image.fromarray(image).save(picture, format="PNG")
        paths.append(tmp_path / name)
        paths[-1].write_bytes(picture.getvalue())
    (tmp_path / "out").mkdir()
    segment_files(MODEL, [*paths, tmp_path / "none.png"], tmp_path / "out", on_failure=lambda error: None)
    return tmp_path / "out"


class _Page(HTMLParser):
    """The rows of the table with what is embedded in each, and every address that the page names."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, str | None]] = []
        self.embedded: list[dict[str, Any]] = []
        self.addresses: list[str | None] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.inside = tag == "script" and own.get("type") == "application/json"
        if tag == "tr" and "data-name" in own:
            self.rows.append(own)

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.embedded.append(json.loads(data))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def _page(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text("utf-8"))
    page.close()
    return page


def test_a_page_has_one_row_a_picture_and_no_other_file(results: Path, tmp_path: Path) -> None:
    assert main(["report", str(results), "--out", str(tmp_path / "page.html")]) == 0
    page = _page(tmp_path / "page.html")
    assert page.addresses == []
    assert not re.search(r"https?:|@import|url\(", (tmp_path / "page.html").read_text("utf-8"))
    assert [row["data-name"] for row in page.rows] == [*NAMES, "none.png"]
    assert [row["data-verdict"] for row in page.rows] == ["defect", "defect", "ok", "defect", "failed"]
    assert [float(row["data-score"] or 0) for row in page.rows[:4]] == [100, 140, 10, 220]
    assert "data-score" not in page.rows[4]
    assert len(page.embedded) == 4
    first = page.embedded[0]
    assert [name.split(",")[0] for name in first["names"]] == [
        "input", "score map", "refined map", "mask", "recovered normal picture"
    ]  # fmt: skip
    assert "10 to 100" in first["names"][1]
    for data in first["data"]:
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert (picture.format, picture.size) == ("WEBP", (40, 24))
    with Image.open(io.BytesIO(base64.b64decode(first["data"][0]))) as picture:
        assert np.abs(np.asarray(picture.convert("RGB"))[6, 12].astype(int) - [100, 0, 0]).max() < 40


def test_pictures_are_small_and_inputs_that_are_gone_are_left_out(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "SIDE", 20)
    (tmp_path / NAMES[1]).unlink()
    assert main(["report", str(results)]) == 0
    page = _page(results / "report.html")
    assert [len(each["data"]) for each in page.embedded] == [5, 4, 5, 5]
    with Image.open(io.BytesIO(base64.b64decode(page.embedded[0]["data"][3]))) as picture:
        assert picture.size == (20, 12)


def test_results_that_cannot_be_shown_are_one_line(results: Path, tmp_path: Path) -> None:
    lines = (results / "results.jsonl").read_text("utf-8").splitlines()
    record = json.loads(lines[0])
    with pytest.raises(InputError, match=r"holds no results\.jsonl that can be read; name a folder that segment"):
        read_lines(tmp_path)
    wrong = {
        "{": "line 1 is damaged .no JSON.",
        "[]": "line 1 is damaged",
        json.dumps(record | {"area": 7}): "line 1 is damaged .area",
        json.dumps(record | {"mask": "../secret.png"}): "line 1 is damaged .mask",
        json.dumps(record | {"mask": None}): "is not whole",
        json.dumps(record | {"score": "none.tiff"}): "no such file",
        "": "is empty",
    }
    for text, line in wrong.items():
        (results / "results.jsonl").write_text(text, "utf-8")
        with pytest.raises(InputError, match=line):
            write_report(results, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_works_in_a_browser(results: Path, tmp_path: Path) -> None:
    """Counts follow the threshold, filters and headers act, and pictures far from the window are not decoded."""
    lines = (results / "results.jsonl").read_text("utf-8").splitlines()
    (results / "results.jsonl").write_text("\n".join(lines[:4] * 10 + lines[4:]), "utf-8")
    write_report(results, tmp_path / "page.html")
    acts = """<script>
    const tell = (name, value) => document.documentElement.setAttribute("data-" + name, value);
    const set = (id, value) => { byId(id).value = value; byId(id).dispatchEvent(new Event("input", {bubbles: true})); };
    tell("counts", byId("counts").textContent);
    set("threshold", 120); tell("moved", byId("counts").textContent);
    set("score", 120); tell("shown", byId("shown").textContent);
    set("score", ""); set("name", "GOOD"); tell("named", byId("shown").textContent); set("name", "");
    document.querySelector("[data-key=score]").click();
    tell("first", document.querySelector("tbody tr").dataset.score);
    setTimeout(() => tell("drawn", document.querySelectorAll("img[src]").length), 300);
    </script></body>"""
    page = (tmp_path / "page.html").read_text("utf-8").replace("</body>", acts)
    (tmp_path / "acting.html").write_text(page, "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    address = (tmp_path / "acting.html").as_uri()
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', done.stdout.partition(">")[2].partition(">")[0]))
    assert found["counts"].startswith("score above 50.00: 30 of 40 pictures (30 defect, 0 unexplained, 0 ok)")
    assert found["moved"].startswith("score above 120.0: 20 of 40 pictures")
    assert (found["shown"], found["named"], found["first"]) == ("20 shown", "10 shown", "220.0")
    assert 4 <= int(found["drawn"]) < 80
