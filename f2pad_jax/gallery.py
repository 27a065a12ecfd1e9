"""One HTML file about a folder of results, which needs neither a network nor other files."""

from __future__ import annotations

import base64
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image
from pydantic import BaseModel, Field, ValidationError
from skimage.segmentation import find_boundaries
from tqdm import tqdm

from f2pad_jax import __version__
from f2pad_jax.data.folders import RECORDS
from f2pad_jax.data.images import read_image, read_mask, resize_image, resize_map
from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.interest import cells_inside
from f2pad_jax.maps import read_map
from f2pad_jax.output import check_file, write_bytes
from f2pad_jax.report import colour_scale, heat
from f2pad_jax.tiles import HEAT, Scale

SIDE = 256  # pixels of the longer side of what is shown
QUALITY = 75  # of WebP
OUTLINE = (0, 255, 90)
AGAIN = "segment the pictures again"
PAGES = (".html", ".htm")

FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]  # in the folder itself


class Piece(BaseModel):
    """What of the record of a defect is shown."""

    area: int


class Line(BaseModel):
    """What of a line of `results.jsonl` is shown; of a picture that failed only `error`."""

    image: str
    status: str
    error: str = ""
    verdict: str = "failed"
    area: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_score: float | None = None
    threshold: float | None = None
    residual: float | None = None
    defects: list[Piece] = []
    white_level: int | None = None
    mask: FileName | None = None
    normal: FileName | None = None
    score: FileName | None = None
    refined: FileName | None = None


class Layer(NamedTuple):
    """One of the pictures that a slider goes through."""

    name: str
    data: str  # of a data URI
    scale: Scale | None = None  # of a map


def write_report(results: Path, out: Path) -> int:
    """Writes the page.

    Args:
      results: folder of `segment`.
      out: the HTML file; its folder must exist.

    Returns:
      How many pictures it shows.

    Raises:
      InputError: no folder of results, a line or file of it is missing or damaged, or the page cannot be written, or
        would take the place of a result.
    """
    if out.suffix.casefold() not in PAGES and os.path.realpath(out.parent) == os.path.realpath(results):
        raise InputError("may be one of the results", where=out, hint=f"end the page's name in {PAGES[0]}")
    lines = read_lines(results)
    check_file(out)
    environment = Environment(
        loader=PackageLoader("f2pad_jax"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").generate(
        title=results.absolute().name,
        version=__version__,
        counts=Counter(line.verdict for line in lines),
        rows=_rows(lines, results),
        total=len(lines),
        colours=[to_hex(colour) for colour in colormaps[HEAT](np.linspace(0, 1, 16))],
    )
    # Names of files may hold bytes that are no UTF-8.
    write_bytes(out, b"".join(part.encode("utf-8", "xmlcharrefreplace") for part in page))
    return len(lines)


def read_lines(results: Path) -> list[Line]:
    """The lines of `results.jsonl`, checked.

    Raises:
      InputError: there are none, or one is damaged.
    """
    try:
        texts = (results / RECORDS).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        hint = "name a folder that segment has written"
        raise InputError(f"holds no {RECORDS} that can be read", where=results, hint=hint) from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(Line.model_validate(json.loads(text)))
        except (ValueError, RecursionError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "no JSON"}
            what = f"line {number} is damaged ({' '.join([*map(str, first['loc']), first['msg']])})"
            raise InputError(what, where=results / RECORDS, hint=AGAIN) from error
    if not lines:
        raise InputError(f"{RECORDS} is empty", where=results, hint=AGAIN)
    return lines


def _rows(lines: Sequence[Line], results: Path) -> Iterator[dict[str, Any]]:
    """What the template needs of each picture, as its turn comes."""
    uses = Counter(Path(line.image).name for line in lines)
    for line in tqdm(lines, desc="report", unit="image", leave=False, disable=None):
        path = Path(line.image)
        layers = [] if line.status == "failed" else list(_layers(line, results))
        yield {
            "name": path.name if uses[path.name] == 1 else f"{path.absolute().parent.name}/{path.name}",
            "line": line,
            "largest": max((defect.area for defect in line.defects), default=0),
            "layers": [layer._asdict() for layer in layers],
        }


def _layers(line: Line, results: Path) -> Iterator[Layer]:
    """The pictures of a line, reduced; the input only where it can still be read."""
    files = [line.mask, line.normal, line.score, line.refined]
    if line.threshold is None or None in files:
        raise InputError(f"the line of {line.image} is not whole", where=results / RECORDS, hint=AGAIN)
    mask, normal, *maps = (
        read(results / str(name)) for read, name in zip((read_mask, read_image, read_map, read_map), files, strict=True)
    )
    whole = normal.shape[0], normal.shape[1]
    factor = min(1.0, SIDE / max(whole))
    shape = max(1, round(factor * whole[0])), max(1, round(factor * whole[1]))
    below = shown = resize_image(normal, shape)
    with suppress(InputError), warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # `segment` has told what is doubtful
        below = resize_image(read_image(line.image, white_level=line.white_level), shape)
        yield Layer("input", _webp(below))
    for name, values in zip(("score map", "refined map"), maps, strict=True):
        name = f"{name}, {values.min():.4g} to {values.max():.4g}"
        scale = colour_scale(values, line.threshold)
        yield Layer(name, _webp(heat(resize_map(values, shape), scale)), scale)
    thick = cells_inside(mask, whole, shape)  # a scratch of one pixel stays to be seen
    yield Layer("mask", _webp(_outlined(below, thick)))
    yield Layer("recovered normal picture", _webp(shown))


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture that is darker outside a mask, whose outline is drawn."""
    shown = np.where(mask[..., None], image, image // 2)
    shown[find_boundaries(mask, mode="outer")] = OUTLINE
    return shown


def _webp(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
