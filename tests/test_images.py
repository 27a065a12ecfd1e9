from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from f2pad_jax.core.pixels import denormalize, normalize
from f2pad_jax.data import decoding, images
from f2pad_jax.data.decoding import pages_of, shape_of, split_page
from f2pad_jax.data.folders import find_images
from f2pad_jax.data.images import read_image, read_mask, resize_mask, write_png
from f2pad_jax.errors import InputError, InputWarning


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


def _mask_of(path: Path, picture: Image.Image, **options: object) -> list[list[bool]]:
    return read_mask(_saved(path, picture, **options)).tolist()


def _palette(colours: list[int], *, indices: int) -> Image.Image:
    picture = Image.fromarray(np.arange(indices, dtype=np.uint8)[None]).convert("P")
    picture.putpalette(colours)
    return picture


def test_masks_of_two_levels_and_of_labels(tmp_path: Path) -> None:
    rgba = np.array([[[0, 0, 0, 255], [0, 0, 1, 255], [255, 255, 255, 0], [9, 0, 0, 1]]], np.uint8)
    assert _mask_of(tmp_path / "a.png", Image.fromarray(rgba)) == [[False, True, False, True]]
    for highest in (1, 77, 255):
        grey = np.array([[0, highest, 0]], np.uint8)
        assert _mask_of(tmp_path / "b.bmp", Image.fromarray(grey)) == [[False, True, False]]
        assert _mask_of(tmp_path / "c.png", Image.fromarray(grey.astype(np.uint16))) == [[False, True, False]]
    labels = Image.fromarray(np.array([[0, 1, 2, 30]], np.uint8))
    assert _mask_of(tmp_path / "d.png", labels) == [[False, True, True, True]]
    assert _mask_of(tmp_path / "e.png", Image.new("L", (3, 1))) == [[False] * 3]
    assert _mask_of(tmp_path / "f.png", Image.new("1", (3, 1), 1)) == [[True] * 3]


def test_palettes_and_inverted_tiffs_are_read_by_what_they_mean(tmp_path: Path) -> None:
    assert _mask_of(tmp_path / "a.png", _palette([255, 255, 255, 0, 0, 0], indices=2)) == [[True, False]]
    labels = _palette([0, 0, 0, 128, 0, 0, 64, 64, 0, 9, 0, 99], indices=4)
    assert _mask_of(tmp_path / "b.png", labels) == [[False, True, True, True]]
    for bits, data in ((1, b"\x40"), (8, b"\x00\xff"), (16, b"\x00\x00\xff\xff")):
        path = _tiff(tmp_path / f"{bits}.tif", data, width=2, bits=bits, meaning=0)
        assert read_mask(path).tolist() == [[True, False]]
        np.testing.assert_array_equal(read_image(path)[0, :, 0], [255, 0])


def _disc(side: int = 64) -> np.ndarray:
    y, x = np.indices((side, side)) - side / 2
    return np.hypot(y, x) < side / 4


def test_a_mask_that_jpeg_or_a_smooth_brush_made_is_cut_at_the_middle(tmp_path: Path) -> None:
    truth = _disc()
    hard = Image.fromarray(truth.astype(np.uint8) * 255)
    smooth = hard.resize((256, 256), Image.Resampling.BICUBIC).resize((64, 64), Image.Resampling.BOX)
    for name, picture in (("a.jpg", hard), ("b.png", smooth)):
        path = _saved(tmp_path / name, picture)
        with pytest.warns(InputWarning, match=f"{name}: has more levels than black and white; cut at the middle; save"):
            mask = read_mask(path)
        assert (mask & truth).sum() / (mask | truth).sum() > 0.98
    path = _saved(tmp_path / "c.png", Image.fromarray(np.full((4, 4), 100, np.uint8) + np.arange(4, dtype=np.uint8)))
    with pytest.warns(InputWarning, match="cut at the middle"):  # two greys are no black and white
        read_mask(path)
    steep = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    steep[:, 2:6] = 128
    with pytest.raises(InputError, match="d.png: is no mask: its pixels are neither black nor white"):
        read_mask(_saved(tmp_path / "d.png", Image.fromarray(steep)))
    with pytest.raises(InputError, match="not finite"):
        read_mask(_saved(tmp_path / "e.tif", Image.fromarray(np.array([[0, np.nan]], np.float32))))


def test_orientation_turns_picture_and_mask_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    levels = (np.arange(48).reshape(6, 8) < 17).astype(np.uint8) * 255
    for name in ("a.png", "a.tif"):
        path = _saved(tmp_path / name, Image.fromarray(levels), exif=exif)
        np.testing.assert_array_equal(read_image(path)[..., 0], np.rot90(levels, -1))
        np.testing.assert_array_equal(read_mask(path), np.rot90(levels, -1) > 0)


@pytest.mark.parametrize(("bits", "white"), [(10, 1023), (12, 4095), (14, 16383)])
def test_a_white_level_of_cameras(tmp_path: Path, bits: int, white: int) -> None:
    levels = np.array([[0, white // 2, white]], np.uint16)
    path = _saved(tmp_path / "a.png", Image.fromarray(levels))
    np.testing.assert_array_equal(read_image(path, white_level=white)[0, :, 0], [0, 127, 255])
    message = (
        rf"a.png: has 16 bits of which the upper ones are unused; if its white is {white}, .*--white-level {white}\)"
    )
    with pytest.warns(InputWarning, match=message):
        assert read_image(path)[0, 2, 0] == round(white / 257)
    with pytest.raises(InputError, match=f"a.png: has a level of {white}, over the white level {white - 1}"):
        read_image(path, white_level=white - 1)
    eight = _saved(tmp_path / "b.png", Image.fromarray(np.array([[0, 255]], np.uint8)))
    np.testing.assert_array_equal(read_image(eight, white_level=white)[0, :, 0], [0, 255])


def _tiff(path: Path, data: bytes, *, width: int, bits: int, samples: int = 1, meaning: int = 1) -> Path:
    """A TIFF of one row, written by hand: Pillow writes neither 12 bits nor 16-bit colours."""
    short, long, count = 3, 4, 9
    after = 8 + 2 + 12 * count + 4
    each = struct.pack(f"<{samples}H", *[bits] * samples)
    place = struct.unpack("<I", each.ljust(4, b"\0"))[0] if samples <= 2 else after
    pixels = after + (len(each) if samples > 2 else 0)
    tags = [
        (256, short, 1, width), (257, short, 1, 1), (258, short, samples, place), (259, short, 1, 1),
        (262, short, 1, meaning), (273, long, 1, pixels), (277, short, 1, samples), (278, short, 1, 1),
        (279, long, 1, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", count) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + directory + (each if samples > 2 else b"") + data)
    return path


def test_bits_that_a_file_names_and_colours_of_sixteen(tmp_path: Path) -> None:
    packed = bytes([0x00, 0x0F, 0xFF])  # 0 and 4095 in twelve bits each
    path = _tiff(tmp_path / "twelve.tif", packed, width=2, bits=12)
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 255])
    colours = np.array([[[0, 0, 0], [65535, 257, 514]]], "<u2")
    path = _tiff(tmp_path / "colours.tif", colours.tobytes(), width=2, bits=16, samples=3, meaning=2)
    np.testing.assert_array_equal(read_image(path)[0, 1], [255, 1, 2])
    with pytest.raises(InputError, match="colours.tif: has 16-bit colours, of which 8 bits are read: a white level"):
        read_image(path, white_level=4095)
    path = _tiff(tmp_path / "dark.tif", (colours // 16).tobytes(), width=2, bits=16, samples=3, meaning=2)
    with pytest.warns(InputWarning, match="dark.tif: has 16 bits of which the upper ones are unused; save it with 8"):
        read_image(path)


def test_transparency_that_hides_everything_is_told_and_ignored(tmp_path: Path, rgb: np.ndarray) -> None:
    clear = np.concatenate([rgb, np.zeros_like(rgb[..., :1])], axis=-1)
    path = _saved(tmp_path / "a.png", Image.fromarray(clear))
    with pytest.warns(InputWarning, match="a.png: is transparent everywhere, which is ignored; save it without"):
        np.testing.assert_array_equal(read_image(path), rgb)
    mask = np.zeros((2, 2, 4), np.uint8)
    mask[0, 0, :3] = 255
    path = _saved(tmp_path / "b.png", Image.fromarray(mask))
    with pytest.warns(InputWarning, match="transparent everywhere"):
        assert read_mask(path).tolist() == [[True, False], [False, False]]


def test_pages_of_a_tiff_are_pictures(tmp_path: Path, rgb: np.ndarray) -> None:
    pages = [Image.fromarray(rgb), Image.fromarray(255 - rgb), Image.fromarray(rgb // 2)]
    stack = _saved(tmp_path / "a.b.tif", pages[0], save_all=True, append_images=pages[1:])
    assert [path.name for path in pages_of(stack)] == ["a.b_1.tif", "a.b_2.tif", "a.b_3.tif"]
    assert split_page(pages_of(stack)[1]) == (stack, 2)
    np.testing.assert_array_equal(read_image(stack), rgb)
    np.testing.assert_array_equal(read_image(pages_of(stack)[1]), 255 - rgb)
    with pytest.raises(InputError, match="a.b_4.tif: cannot be decoded"):
        read_image(stack / "a.b_4.tif")
    with pytest.raises(InputError, match="b_2.tif: no such file"):
        read_image(stack / "b_2.tif")
    assert pages_of(_saved(tmp_path / "one.tif", pages[0])) == [tmp_path / "one.tif"]
    broken = tmp_path / "broken.tif"
    broken.write_bytes(stack.read_bytes()[:9])
    assert pages_of(broken) == [broken]
    (tmp_path / "text.tif").write_text("")
    assert pages_of(tmp_path / "none.tif") == [tmp_path / "none.tif"]


def test_pages_of_a_tiff_are_counted_each_by_its_own_size(tmp_path: Path) -> None:
    small, large = Image.new("L", (5, 4)), Image.new("L", (90, 70))
    stack = _saved(tmp_path / "a.tif", small, save_all=True, append_images=[large, small])
    assert [shape_of(page) for page in pages_of(stack)] == [(4, 5), (70, 90), (4, 5)]
    assert shape_of(stack / "a_4.tif") is None


@pytest.mark.parametrize("suffix", ["jp2", "webp", "avif", "jfif", "tga", "pnm", "pbm"])
def test_other_formats_are_pictures(tmp_path: Path, suffix: str) -> None:
    picture = Image.new("1" if suffix == "pbm" else "RGB", (32, 24), 1 if suffix == "pbm" else (200, 100, 50))
    path = _saved(tmp_path / f"a.{suffix.upper()}", picture)
    assert find_images(tmp_path) == [path]
    assert np.abs(read_image(path)[5, 5].astype(int) - np.asarray(picture.convert("RGB"))[5, 5]).max() < 8


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
    assert decoding.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


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
