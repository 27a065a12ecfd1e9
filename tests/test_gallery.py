"""The page about a folder of results: whole, offline, one row a picture, and right in a browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from results import a_result

from f2pad_jax import gallery, picture_jobs
from f2pad_jax.cli import main
from f2pad_jax.errors import InputError
from f2pad_jax.gallery import read_lines, write_report
from f2pad_jax.model import Model
from f2pad_jax.picture_files import segment_files
from f2pad_jax.picture_jobs import Job
from f2pad_jax.segmentation import Segmentation

MODEL = cast(Model, SimpleNamespace(threshold=0.5, shape=(24, 40), windowed=False, white_level=None))
NAMES = ("b<script>alert(1)<!--.png", "a & b.png", "good.png", "日本.png")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
    monkeypatch.setattr(picture_jobs, "segment", lambda model, images: [_result(image) for image in images])
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
    segment_files(Job(MODEL, tmp_path / "out"), [*paths, tmp_path / "none.png"], on_failure=lambda error: None)
    return tmp_path / "out"


class _Markup(HTMLParser):
    """The rows of the table with what is embedded in each, and every address that the page names."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, str | None]] = []
        self.embedded: list[list[dict[str, Any]]] = []
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


def _markup(path: Path) -> _Markup:
    page = _Markup()
    page.feed(path.read_text("utf-8"))
    page.close()
    return page


def test_a_page_has_one_row_a_picture_and_no_other_file(results: Path, tmp_path: Path) -> None:
    assert main(["report", str(results), "--out", str(tmp_path / "page.html")]) == 0
    page = _markup(tmp_path / "page.html")
    assert page.addresses == []
    assert not re.search(r"https?:|@import|url\(", (tmp_path / "page.html").read_text("utf-8"))
    assert [row["data-name"] for row in page.rows] == [*NAMES, "none.png"]
    assert [row["data-verdict"] for row in page.rows] == ["defect", "defect", "ok", "defect", "failed"]
    assert [float(row["data-score"] or 0) for row in page.rows[:4]] == [100, 140, 10, 220]
    assert "data-score" not in page.rows[4]
    assert len(page.embedded) == 4
    first = page.embedded[0]
    assert [layer["name"].split(",")[0] for layer in first] == [
        "input", "score map", "refined map", "mask", "recovered normal picture"
    ]  # fmt: skip
    assert "10 to 100" in first[1]["name"]
    assert [layer["scale"] for layer in first] == [None, [10, 100, 50], [10, 200, 50], None, None]
    for layer in first:
        with Image.open(io.BytesIO(base64.b64decode(layer["data"]))) as picture:
            assert (picture.format, picture.size) == ("WEBP", (40, 24))
    with Image.open(io.BytesIO(base64.b64decode(first[0]["data"]))) as picture:
        assert np.abs(np.asarray(picture.convert("RGB"))[6, 12].astype(int) - [100, 0, 0]).max() < 40


def test_a_page_replaces_no_result(results: Path, capsys: pytest.CaptureFixture) -> None:
    lines = (results / "results.jsonl").read_bytes()
    assert main(["report", str(results), "--out", str(results / "results.jsonl")]) == 2
    assert "results.jsonl: may be one of the results; end the page's name in .html" in capsys.readouterr().err
    assert (results / "results.jsonl").read_bytes() == lines


def test_a_page_that_cannot_be_written_is_not_begun(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "_rows", lambda *_: pytest.fail("worked in vain"))
    with pytest.raises(InputError, match="none: no such folder; make it first"):
        write_report(results, tmp_path / "none/page.html")


def test_names_that_several_pictures_have_tell_the_folder(results: Path, tmp_path: Path) -> None:
    lines = (results / "results.jsonl").read_text("utf-8").splitlines()
    (results / "results.jsonl").write_text(
        "\n".join([*lines, json.dumps({"image": "other/good.png", "status": "failed"})])
    )
    write_report(results, tmp_path / "page.html")
    names = [row["data-name"] for row in _markup(tmp_path / "page.html").rows]
    assert names == [*NAMES[:2], f"{tmp_path.name}/good.png", NAMES[3], "none.png", "other/good.png"]


def test_pictures_are_small_and_inputs_that_are_gone_are_left_out(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "SIDE", 20)
    (tmp_path / NAMES[1]).unlink()
    assert main(["report", str(results)]) == 0
    page = _markup(results / "report.html")
    assert [len(layers) for layers in page.embedded] == [5, 4, 5, 5]
    with Image.open(io.BytesIO(base64.b64decode(page.embedded[0][3]["data"]))) as picture:
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except PlaywrightError as error:
            pytest.skip(f"Chromium does not start ({error})")
        yield browser
        browser.close()


@pytest.fixture
def page(results: Path, tmp_path: Path, browser: Browser) -> Iterator[Page]:
    """The report of 41 pictures, open; in the end nothing was fetched and the console is empty."""
    lines = (results / "results.jsonl").read_text("utf-8").splitlines()
    (results / "results.jsonl").write_text("\n".join(lines[:4] * 10 + lines[4:]), "utf-8")
    write_report(results, tmp_path / "page.html")
    address, told, asked = (tmp_path / "page.html").as_uri(), [], []
    with browser.new_page(viewport={"width": 1000, "height": 700}) as page:
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page
        assert told == []
        assert [url for url in asked if not url.startswith("data:")] == [address]


def _slide(slider: Locator, place: float) -> float:
    """Clicks on a slider at a share of its width; its value then."""
    box = slider.bounding_box()
    assert box is not None
    slider.click(position={"x": place * box["width"], "y": box["height"] / 2})
    return float(slider.input_value())


def _names(page: Page) -> list[str]:
    return [Path(name).name for name in page.locator("tbody tr:visible td.name").all_text_contents()]


def test_counts_follow_the_threshold(page: Page) -> None:
    counts = page.locator("#counts")
    assert counts.inner_text().startswith("score above 50.00: 30 of 40 pictures (30 defect, 0 unexplained, 0 ok)")
    scores = [100, 140, 10, 220]
    for place in (0.02, 0.3, 0.5, 0.9, 0.98):
        at = _slide(page.locator("#threshold"), place)
        above = sum(10 for score in scores if score > at)
        assert f": {above} of 40 pictures" in counts.inner_text()
        assert page.locator("tr.above").count() == above
    page.keyboard.press("Home")
    assert ": 30 of 40 pictures (30 defect" in counts.inner_text()  # none is above itself


def test_filters_leave_what_they_say(page: Page) -> None:
    shown = page.locator("#shown")
    assert (shown.inner_text(), len(_names(page))) == ("41 shown", 41)
    page.get_by_label("defect", exact=True).uncheck()
    assert _names(page) == ["good.png"] * 10 + ["none.png"]
    page.get_by_label("failed").uncheck()
    assert set(_names(page)) == {"good.png"}
    page.get_by_label("defect", exact=True).check()
    page.get_by_label("score from").fill("120")
    assert shown.inner_text() == "20 shown"
    page.get_by_label("score from").fill("")
    page.get_by_label("name").fill("GOOD")
    assert (set(_names(page)), shown.inner_text()) == ({"good.png"}, "10 shown")
    page.get_by_label("name").fill("")
    page.get_by_label("area from").fill("6")  # per cent: 48 of 960 pixels are 5, 72 are 7.5
    assert set(_names(page)) == {"a & b.png", "日本.png"}


def test_headers_sort(page: Page) -> None:
    def column(number: int) -> list[str]:
        return page.locator(f"tbody tr td:nth-child({number})").all_inner_texts()

    def press(name: str) -> str | None:
        page.get_by_role("button", name=name, exact=False).click()
        return page.locator("th", has=page.get_by_role("button", name=name)).get_attribute("aria-sort")

    scores = ["220"] * 10 + ["140"] * 10 + ["100"] * 10 + ["10"] * 10 + [""]
    assert (press("score"), column(4)) == ("descending", scores)
    assert (press("score"), column(4)) == ("ascending", scores[::-1])
    assert (press("area"), column(5)[0]) == ("descending", "8.750 %")
    assert (press("picture"), column(2)[0]) == ("ascending", "none.png")
    assert (press("picture"), Path(column(2)[0]).name) == ("descending", "日本.png")
    assert (press("verdict"), column(3)[-1].split()[0]) == ("ascending", "ok")
    assert page.locator("th[aria-sort]").count() == 1


def test_a_slider_goes_through_the_layers(page: Page) -> None:
    view = page.locator(".view").first
    slider, name = view.get_by_role("slider"), view.locator("output")
    assert name.inner_text() == "input"
    seen = []
    for _ in range(4):
        for _ in range(20):
            slider.press("ArrowRight")
        seen.append(name.inner_text().split(",")[0])
    assert seen == ["score map", "refined map", "mask", "recovered normal picture"]
    slider.press("Home")
    for _ in range(10):
        slider.press("ArrowRight")
    assert view.locator("img").nth(1).evaluate("image => [image.naturalWidth, image.style.opacity]") == [40, "0.5"]
    everywhere = page.get_by_label("show all as")
    everywhere.press("End")
    assert set(page.locator(".view output").all_inner_texts()) - {""} == {"recovered normal picture"}
    narrow = view.bounding_box()
    view.locator(".stack").click()
    wide = view.bounding_box()
    assert narrow is not None
    assert wide is not None
    assert wide["width"] > 1.5 * narrow["width"]


def test_nothing_is_cut_off_or_covered(page: Page) -> None:
    """On a desk and on a phone, and with a picture that is enlarged."""
    row, view = page.locator("tbody tr").first, page.locator(".view").first
    for width in (1400, 1000, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for _ in range(2):
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            picture = view.bounding_box()
            assert picture is not None
            for cell in ("name", "verdict", "score", "area", "defects"):
                text = row.locator(f"td.{cell}").bounding_box()
                assert text is not None
                apart = picture["x"] + picture["width"] <= text["x"] or picture["y"] + picture["height"] <= text["y"]
                assert apart, (width, cell)
            view.locator(".stack").click()


def test_maps_have_a_bar_of_their_colours(page: Page) -> None:
    view = page.locator(".view").first
    bar = view.locator(".scale")
    assert not bar.is_visible()
    height = view.bounding_box()
    view.get_by_role("slider").fill("2")
    assert view.locator("output").inner_text() == "refined map, 10 to 200"
    assert bar.inner_text().split() == ["10.00", "threshold", "50.00", "200.0"]
    place = bar.locator("i").evaluate("mark => parseFloat(mark.style.left)")
    assert place == pytest.approx(100 * (50 - 10) / (200 - 10), abs=1e-3)
    assert view.bounding_box() == height  # nothing below it moves
    view.get_by_role("slider").fill("3")
    assert not bar.is_visible()


def test_pictures_far_from_the_window_are_not_loaded(page: Page) -> None:
    first, last = page.locator(".view").first, page.locator(".view").last
    loaded = page.locator("img[src]")
    first.locator("img[src]").first.wait_for()
    assert last.locator("img[src]").count() == 0
    assert 4 <= loaded.count() <= 20
    last.scroll_into_view_if_needed()
    last.locator("img[src]").first.wait_for()
    expect(first.locator("img[src]")).to_have_count(0)
    assert loaded.count() <= 20
