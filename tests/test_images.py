from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from f2pad_jax.core.pixels import denormalize, normalize
from f2pad_jax.data import images
from f2pad_jax.data.images import read_image, read_mask, resize_mask, write_png
from f2pad_jax.errors import InputError


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def _saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def test_rgb_comes_back_as_written(tmp_path: Path, rgb: np.ndarray) -> None:
    write_png(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_grey_is_repeated(tmp_path: Path, rgb: np.ndarray) -> None:
    read = read_image(_saved(tmp_path / "a.png", Image.fromarray(rgb[..., 0])))
    np.testing.assert_array_equal(read, np.repeat(rgb[..., :1], 3, axis=-1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 128, 129, 257 * 77, 65534, 65535]], np.uint16)
    read = read_image(_saved(tmp_path / f"a.{suffix}", Image.fromarray(levels)))
    np.testing.assert_array_equal(read[0, :, 0], [0, 0, 1, 77, 255, 255])
    assert read.shape == (1, 6, 3)


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode=None).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    read = read_image(_saved(tmp_path / "a.png", picture))
    np.testing.assert_array_equal(read, [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    read = read_image(_saved(tmp_path / "a.png", Image.fromarray(rgba)))
    np.testing.assert_array_equal(read, [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]])


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    read = read_image(_saved(tmp_path / "a.png", picture, transparency=b"\x00\xff"))
    np.testing.assert_array_equal(read, [[[255, 255, 255], [40, 50, 60]]])


def test_cmyk(tmp_path: Path) -> None:
    read = read_image(_saved(tmp_path / "a.tif", Image.new("CMYK", (3, 2), (0, 255, 255, 0))))
    np.testing.assert_array_equal(read, np.broadcast_to([255, 0, 0], (2, 3, 3)))


def test_orientation_is_obeyed(tmp_path: Path, rgb: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    read = read_image(_saved(tmp_path / "a.png", Image.fromarray(rgb), exif=exif))
    np.testing.assert_array_equal(read, np.rot90(rgb, -1))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (300, 301)])
def test_any_size_is_resized_to_the_square(tmp_path: Path, shape: tuple[int, int]) -> None:
    write_png(tmp_path / "a.png", np.full((*shape, 3), 77, np.uint8))
    read = read_image(tmp_path / "a.png", 32)
    assert read.shape == (32, 32, 3)
    assert (read == 77).all()


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    checkers = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write_png(tmp_path / "a.png", checkers)
    assert np.abs(read_image(tmp_path / "a.png", 64).astype(int) - 127.5)[4:-4, 4:-4].max() < 8


def test_masks_are_true_where_any_colour_is(tmp_path: Path) -> None:
    rgba = np.array([[[0, 0, 0, 255], [0, 0, 1, 255], [255, 255, 255, 0], [9, 0, 0, 1]]], np.uint8)
    np.testing.assert_array_equal(
        read_mask(_saved(tmp_path / "a.png", Image.fromarray(rgba))), [[False, True, False, True]]
    )
    grey = np.array([[0, 1, 255]], np.uint8)
    np.testing.assert_array_equal(read_mask(_saved(tmp_path / "b.png", Image.fromarray(grey))), [[False, True, True]])
    deep = np.array([[0, 1, 65535]], np.uint16)
    np.testing.assert_array_equal(read_mask(_saved(tmp_path / "c.png", Image.fromarray(deep))), [[False, True, True]])
    labels = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    labels.putpalette([255, 255, 255, 0, 0, 0, 7, 7, 7])
    np.testing.assert_array_equal(read_mask(_saved(tmp_path / "d.png", labels)), [[False, True, True]])


def test_masks_are_resized_by_the_pixel_under_each_centre() -> None:
    mask = np.random.default_rng(1).random((256, 300)) < 0.5
    resized = resize_mask(mask, (224, 200))
    for row in range(224):
        for column in range(200):
            assert resized[row, column] == mask[int((row + 0.5) * 256 / 224), int((column + 0.5) * 300 / 200)]


def test_a_resized_mask_still_covers_the_same_disc() -> None:
    def disc(size: int) -> np.ndarray:
        y, x = (np.indices((size, size)) + 0.5) / size - 0.5
        return np.hypot(y - 0.05, x + 0.1) < 0.2

    resized, drawn = resize_mask(disc(900), (224, 224)), disc(224)
    assert (resized & drawn).sum() / (resized | drawn).sum() > 0.99
    there_and_back = resize_mask(resize_mask(drawn, (448, 448)), (224, 224))
    np.testing.assert_array_equal(there_and_back, drawn)


def test_normalisation(rgb: np.ndarray) -> None:
    normal = normalize(rgb)
    assert normal.dtype == np.float32
    expected = (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normal, expected, atol=1e-6)
    every = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    np.testing.assert_array_equal(denormalize(normalize(every)), every)
    np.testing.assert_array_equal(denormalize(np.array([9.0, -9.0, 0.0])), [255, 0, 104])


def _png(width: int, height: int) -> bytes:
    """A PNG header that promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _encoded(format: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format)
    return buffer.getvalue()


FAULTS = {
    "empty": (b"", "the file is empty"),
    "text": (b"not a picture", "is no picture that can be read"),
    "short header": (b"\x89PNG\r\n\x1a\n\x00", "can"),
    "half a png": (_encoded("png")[:3000], "cannot be decoded"),
    "half a jpeg": (_encoded("jpeg")[:2000], "cannot be decoded"),
    "half a tiff": (_encoded("tiff")[:3000], "can"),
    "large": (_png(12000, 12000), "has more than 89,478,485 pixels"),
    "bomb": (_png(100_000, 100_000), "has more than 89,478,485 pixels"),
}


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_files_give_one_line(tmp_path: Path, fault: str, read: object) -> None:
    data, message = FAULTS[fault]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert callable(read)
    with pytest.raises(InputError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="is not a file"):
        read_image(tmp_path)


@pytest.mark.parametrize("pixels", [np.full((4, 4), 70000, np.int32), np.full((4, 4), 0.5, np.float32)])
def test_pixels_without_a_defined_range_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    path = _saved(tmp_path / "a.tif", Image.fromarray(pixels))
    with pytest.raises(InputError, match=r"(32-bit integer|floating-point) pixels; save it with 8 or 16 bits"):
        read_image(path)


def test_the_pixel_limit_is_pillows() -> None:
    assert images.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_writing_fails_cleanly(tmp_path: Path, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_png(tmp_path / "missing" / "a.png", rgb)
    write_png(tmp_path / "a.png", rgb)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_png(tmp_path / "a.png", rgb[::-1])
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb)
