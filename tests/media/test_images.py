"""Images of every kind that people have, and what is no image."""

import base64
import gc
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama4_reference import image_processor_class
from numpy.typing import NDArray
from PIL import ExifTags, ImageFile, ImageOps, PngImagePlugin
from PIL import Image as Pillow
from refusals import refusal

from edge_llama.errors import InputError, OptionError
from edge_llama.media.images import MAX_PIXELS, Image

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


def encoded(image: Pillow.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.fixture
def photo(rng: np.random.Generator) -> Pillow.Image:
    """40 x 30, soft, no two corners alike."""
    return Pillow.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((40, 30), Pillow.Resampling.BICUBIC)


def test_what_transformers_gives_its_models_is_what_we_give(photo: Pillow.Image) -> None:
    """Its processor's own conversion to RGB, for every mode that it can read."""
    alpha = Pillow.linear_gradient("L").resize(photo.size)
    with_alpha = photo.convert("RGBA")
    with_alpha.putalpha(alpha)
    palette = photo.quantize(64)
    transparent = palette.copy()
    transparent.info["transparency"] = bytes(range(0, 256, 4))
    kinds = {
        "rgb": encoded(photo, "PNG"),
        "rgba": encoded(with_alpha, "PNG"),
        "grey and alpha": encoded(with_alpha.convert("LA"), "PNG"),
        "grey": encoded(photo.convert("L"), "PNG"),
        "one colour transparent": encoded(photo, "PNG", transparency=photo.getpixel((3, 3))),
        "bits": encoded(photo.convert("1"), "PNG"),
        "palette": encoded(palette, "PNG"),
        "palette and alpha": encoded(transparent, "PNG"),
        "cmyk": encoded(photo.convert("CMYK"), "JPEG"),
        "cmyk tiff": encoded(photo.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "ycbcr": encoded(photo.convert("YCbCr"), "TIFF"),
        "gif": encoded(photo.quantize(16), "GIF", transparency=2),
        "webp and alpha": encoded(with_alpha, "WEBP", lossless=True),
        "avif and alpha": encoded(with_alpha, "AVIF"),
    }
    processor = image_processor_class()()
    for kind, data in kinds.items():
        theirs = processor.process_image(Pillow.open(io.BytesIO(data)), do_convert_rgb=True).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(Image.open(data).pixels(), theirs, err_msg=kind)


def test_what_is_transparent_lies_on_white() -> None:
    image = Pillow.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    assert Image.open(encoded(image, "PNG")).pixels().tolist() == [[[255, 255, 255], [127, 127, 127]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_upper_byte(kind: str) -> None:
    levels = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    found = Image.open(encoded(Pillow.fromarray(levels), kind)).pixels()
    assert found[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]
    assert (found == found[..., :1]).all()


def test_16_bit_rgb() -> None:
    """Pillow can't write it: a PNG by hand, of two pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    row = b"\0" + struct.pack(">6H", 0, 0x80FF, 0xFFFF, 0x1234, 0x00FF, 0x0100)
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert Image.open(png).pixels().tolist() == [[[0, 0x80, 255], [0x12, 0, 1]]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_of_unknown_range_are_refused(mode: str) -> None:
    image = Image.open(encoded(Pillow.new(mode, (3, 3)), "TIFF"))
    with refusal(InputError, "32-bit", "image"):
        image.pixels()


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_photos_stand_upright(photo: Pillow.Image, kind: str, orientation: int, tmp_path: Path) -> None:
    """As Pillow turns them; the size is known before any pixel is."""
    exif = Pillow.Exif()
    exif[ExifTags.Base.Make] = "A camera"
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "photo"
    path.write_bytes(encoded(photo, kind, exif=exif))
    upright = ImageOps.exif_transpose(Pillow.open(io.BytesIO(path.read_bytes()))).convert("RGB")
    image = Image.open(path)
    assert (image.width, image.height) == upright.size == ((30, 40) if orientation in range(5, 9) else (40, 30))
    np.testing.assert_array_equal(image.pixels(), np.asarray(upright))
    opened = Image.open(Pillow.open(io.BytesIO(image.data)))
    np.testing.assert_array_equal(opened.pixels(), np.asarray(upright))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "letter"), [(3, "H"), (4, "I"), (6, "b"), (8, "h"), (9, "i"), (11, "f"), (12, "d")])
@pytest.mark.parametrize("count", [1, 2])
def test_the_orientation_is_a_number_of_any_type(
    photo: Pillow.Image, order: str, kind: int, letter: str, count: int
) -> None:
    """As Pillow takes it, which of several takes the first; some do not fit into the tag and stand behind it."""
    value = struct.pack(f"{order}{count}{letter}", *([6] + [3] * (count - 1)))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(f"{order}I", 26)
    exif = mark + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, count) + place + bytes(4) + value
    data = encoded(photo, "JPEG", exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's, about more than one
        upright = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data)))
    image = Image.open(data)
    assert (image.width, image.height) == upright.size == (30, 40)
    np.testing.assert_array_equal(image.pixels(), np.asarray(upright))


def test_the_orientation_may_stand_in_xmp_or_in_text(photo: Pillow.Image) -> None:
    def xmp(text: str) -> bytes:
        return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {text}</x:xmpmeta>'.encode()

    exif = Pillow.Exif()
    exif[ExifTags.Base.Orientation] = 8
    raw = exif.tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n")
    damaged = PngImagePlugin.PngInfo()
    damaged.add_text("Raw profile type exif", "\nexif\n 9\nno digits\n")
    kinds = [
        encoded(photo, "JPEG", xmp=xmp('tiff:Orientation="6"/>')),
        encoded(photo, "WEBP", xmp=xmp("><tiff:Orientation>6</tiff:Orientation>")),
        encoded(photo, "JPEG", exif=exif, xmp=xmp('tiff:Orientation="1"/>')),
        encoded(photo, "PNG", pnginfo=text),
    ]
    for data in kinds:
        upright = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data)))
        image = Image.open(data)
        assert (image.width, image.height) == upright.size == (30, 40)
        np.testing.assert_array_equal(image.pixels(), np.asarray(upright.convert("RGB")))
    assert Image.open(encoded(photo, "PNG", pnginfo=damaged)).width == 40


@pytest.mark.parametrize("order", ["<", ">"])
def test_damaged_exif_neither_warns_nor_hinders(photo: Pillow.Image, order: str) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tags = struct.pack(f"{order}HHIHxxHHII", 0x0112, 3, 1, 6, 0x010F, 2, 1 << 30, 1 << 30)
    for exif, size in [
        (mark + struct.pack(f"{order}IH", 8, 2) + tags, (30, 40)),  # the second tag lies outside
        (mark + struct.pack(f"{order}IH", 8, 60000) + tags[12:], (40, 30)),
        (mark + struct.pack(f"{order}I", 1 << 31), (40, 30)),
        (b"II", (40, 30)),
        (b"", (40, 30)),
        (b"rubbish" * 9, (40, 30)),
    ]:
        image = Image.open(encoded(photo, "JPEG", exif=b"Exif\0\0" + exif))
        assert (image.width, image.height) == size
        assert image.pixels().shape == (*size[::-1], 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_of_an_animation_the_first_frame_is_used_and_it_says_so(photo: Pillow.Image, kind: str) -> None:
    colours = [Pillow.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    image = Image.open(encoded(colours[0], kind, save_all=True, append_images=colours[1:], **options))
    assert "first" in image.notes[0]
    assert np.abs(image.pixels().astype(int) - [255, 0, 0]).max() <= 2
    assert Image.open(encoded(colours[0], kind)).notes == ()


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    image = Image.open(encoded(Pillow.new("RGB", size, "navy"), "PNG"))
    assert (image.width, image.height) == size
    assert image.pixels().shape == (size[1], size[0], 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_counts_and_not_the_extension(photo: Pillow.Image, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "ein Bild äöü.txt"
    path.write_bytes(encoded(photo, kind))
    image = Image.open(path)
    assert image.name == str(path)
    assert (image.width, image.height) == (40, 30)
    assert image == Image.open(str(path)) == Image.open(path.read_bytes()) == Image.open(image)
    assert hash(image) == hash(Image.open(path.read_bytes()))
    np.testing.assert_array_equal(image.pixels(), np.asarray(Pillow.open(io.BytesIO(image.data)).convert("RGB")))
    url = image.to_data_url()
    assert url.startswith(f"data:image/{kind.lower()};base64,")
    assert Image.from_data_url(url) == image


def test_pixels_and_pillow_images_are_kept_losslessly(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    for source in (pixels, np.asfortranarray(pixels), Pillow.fromarray(pixels)):
        image = Image.open(source)
        assert (image.width, image.height, image.name) == (5, 7, "image")
        np.testing.assert_array_equal(image.pixels(), pixels)
        assert image.to_data_url().startswith("data:image/png;base64,")
    np.testing.assert_array_equal(Image.open(pixels[:, ::-1]).pixels(), pixels[:, ::-1])
    assert Image.open(pixels).digest == Image.open(pixels.copy()).digest != Image.open(pixels[::-1]).digest


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        3,
        None,
        ["a.png"],
    ],
    ids=lambda source: type(source).__name__,
)
def test_other_types_are_refused(source: Any) -> None:
    with refusal(OptionError, "an image"):
        Image.open(source)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("hosts_choice", [False, True], ids=["", "the host lets Pillow fill up truncated images"])
def test_truncated_images_are_refused_when_they_are_read(
    rng: np.random.Generator, kind: str, hosts_choice: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", hosts_choice)
    data = encoded(Pillow.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)), kind)
    path = tmp_path / "cut"
    for kept in (5, 20, len(data) // 10, len(data) // 2, len(data) * 9 // 10):
        path.write_bytes(data[:kept])
        with refusal(InputError, "damaged|no image", path):
            Image.open(path).pixels()
    assert hosts_choice == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_images_are_refused_or_read_but_nothing_else_happens(
    photo: Pillow.Image, kind: str, rng: np.random.Generator
) -> None:
    data = encoded(photo, kind)
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        with suppress(InputError):
            assert Image.open(bytes(damaged)).pixels().dtype == np.uint8


def bomb(width: int, height: int) -> bytes:
    data = bytearray(encoded(Pillow.new("1", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def bmp_bomb(width: int, height: int) -> bytes:
    data = bytearray(encoded(Pillow.new("RGB", (1, 1)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


@pytest.mark.parametrize("make", [bomb, bmp_bomb])
@pytest.mark.parametrize("hosts_limit", [None, 1, 1 << 40])
def test_too_many_pixels_are_refused_by_the_header(
    make: Callable[[int, int], bytes], hosts_limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By our limit, whatever the host set for Pillow: nothing is allocated, warned of or changed."""
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", hosts_limit)
    with refusal(InputError, "pixels", "50,000 x 60,000", f"{MAX_PIXELS:,}"):
        Image.open(make(50_000, 60_000))
    image = Image.open(bomb(11_000, 11_000))
    assert (image.width, image.height) == (11_000, 11_000)
    assert hosts_limit == Pillow.MAX_IMAGE_PIXELS


def test_no_pixels_are_refused() -> None:
    for width, height in [(0, 0), (0, 5), (5, 0)]:
        for make in (bomb, bmp_bomb):
            with refusal(InputError, "damaged|nothing to see"):
                Image.open(make(width, height))
        with refusal(InputError, "nothing to see"):
            Image.open(Pillow.new("RGB", (width, height)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG",
        b"hello, world",
        b"<html><body>404</body></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # Pillow would run Ghostscript
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"GIF89a",
        b"BM",
        b"\xff\xd8\xff",
        b"II*\0",
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\0\x18ftypavif",
    ],
)
def test_what_is_no_image_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with refusal(InputError, "damaged|no image", path):
        Image.open(path)


@pytest.mark.parametrize(
    "url", ["https://example.com/cat.png", "http://[::1]/x", "FILE:///etc/passwd", "data:image/png;base64,AAAA"]
)
def test_a_url_where_a_file_is_expected_is_refused(url: str) -> None:
    with refusal(InputError, "URL", url):
        Image.open(url)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "missing.png", tmp_path, pipe, Path("/dev/zero"), tmp_path / ("x" * 300)):
        with refusal(InputError, "No such file|folder|FIFO|device|too long", path):
            Image.open(path)
    for text in ("", "a\0b.png"):
        with refusal(InputError, "folder|null"):
            Image.open(text)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with refusal(InputError, "bytes", path, f"{1 << 40:,}"):
        Image.open(path)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/cat.png",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64,not base64!",
        "data:image/png;base64,AAA",
        "data:image/png;base64," + base64.b64encode(b"no image").decode(),
        "data:image/png;base64,ÄÖ",
        "",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with refusal(InputError, "image"):
        Image.from_data_url(url)


def test_threads_read_the_same_pixels(photo: Pillow.Image) -> None:
    images = [Image.open(encoded(photo, kind)) for kind in FORMATS]
    expected = [image.pixels() for image in images]
    start = threading.Barrier(8)

    def read(_: int) -> list[NDArray[np.uint8]]:
        start.wait(10)
        return [image.pixels() for _ in range(5) for image in images]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(read, range(8)):
            for theirs, ours in zip(found, expected * 5, strict=True):
                np.testing.assert_array_equal(theirs, ours)


def test_no_file_stays_open(photo: Pillow.Image, tmp_path: Path) -> None:
    """A ResourceWarning would fail the test, too; on Windows an open file can't be replaced."""
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photo, "JPEG"))
    image = Image.open(path)
    path.write_bytes(b"replaced")
    assert image.pixels().shape == (30, 40, 3)
    gc.collect()
