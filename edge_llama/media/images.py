"""Images as people have them: from a file, bytes, an array or Pillow, down to upright RGB pixels.

Pillow decodes but doesn't choose: a format is known by its first bytes, only those of photographs and screenshots are
opened (for others Pillow would run Ghostscript), and the header is judged first. The host's settings of Pillow stay as
they are, and don't count here.
"""

import base64
import hashlib
import importlib
import io
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edge_llama.errors import InputError, OptionError
from edge_llama.host.regular_files import content_of, why_no_file

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageFile
    from numpy.typing import NDArray

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[np.uint8] | PIL.Image.Image | Image"
"""What :meth:`Image.open` takes: a path, encoded bytes, pixels (uint8, height x width x 3), a Pillow image, or one.

Examples:
    >>> [edge_llama.Image.open(source).width for source in ("docs/digits.png", np.zeros((4, 6, 3), np.uint8))]
    [224, 6]
"""

MAX_BYTES = 256 << 20
"""The largest file that is read."""

MAX_PIXELS = 128 << 20
"""The most that are decoded: half a GiB at Pillow's four bytes each. A phone's 108 megapixels fit."""

_FORMATS = (  # how the data begins, Pillow's module for it, its media type
    (rb"\x89PNG\r\n\x1a\n", "Png", "image/png"),
    (rb"\xff\xd8\xff", "Jpeg", "image/jpeg"),
    (rb"RIFF....WEBP", "WebP", "image/webp"),
    (rb"GIF8[79]a", "Gif", "image/gif"),
    (rb"BM", "Bmp", "image/bmp"),
    (rb"II[*+]\0|MM\0[*+]", "Tiff", "image/tiff"),
    (rb"....ftypavi[fs]", "Avif", "image/avif"),
)
MEDIA_TYPES = frozenset(media_type for _, _, media_type in _FORMATS)
_ORIENTATION_TAG = 0x0112
_EXIF_NUMBERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I"}
"""Types of EXIF's numbers: writers use more than the 16 bits of the standard."""
_EXIF_MARK = re.compile(rb"\A(?:Exif\0\0){1,2}")
_XMP_ORIENTATION = re.compile(r"tiff:Orientation(?:=\"|>)([0-9])")
_URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image, as it came; :meth:`open` makes one. Equal images have equal bytes, whatever their names.

    ``width`` and ``height`` are the upright image's in pixels, ``digest`` is the SHA-256 of ``data`` in hex, and
    ``notes`` say what people should know (that it is animated). A value: safe to share between threads.

    Examples:
        >>> image = edge_llama.Image.open("docs/digits.png")
        >>> image.width, image.height, image.pixels().shape, image.pixels().dtype
        (224, 112, (112, 224, 3), dtype('uint8'))
        >>> edge_llama.Image.open(image.pixels()).pixels().tobytes() == image.pixels().tobytes()
        True
        >>> edge_llama.Image.from_data_url(image.to_data_url()) == image
        True
        >>> image.to_pillow().mode
        'RGB'
    """

    data: bytes = field(repr=False)
    name: str = field(compare=False)
    width: int
    height: int
    digest: str
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, source: ImageSource) -> "Image":
        """An image from a path, encoded bytes, RGB pixels (uint8, height x width x 3), a Pillow image, or itself.

        Only the header is read: damage behind it shows in :meth:`pixels`. Pixels and Pillow images become PNG.
        InputError for what can't be read, is no image, or has no pixels or too many; OptionError for another type.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, str | os.PathLike):
            path = regular_file(source, MAX_BYTES)
            return _from_data(content_of(path), str(path))
        return _from_data(source if isinstance(source, bytes) else _png(source), "image")

    @classmethod
    def from_data_url(cls, url: str) -> "Image":
        """The inverse of :meth:`to_data_url`; InputError for every other URL, since nothing is fetched."""
        if not (found := _DATA_URL.match(url)):
            raise InputError(f"an image is given as {url[:40]!r}", remedy="give data:image/png;base64,… or a file")
        try:
            data = base64.b64decode(url[found.end() :], validate=True)
        except ValueError as error:
            raise InputError(f"an image's data URL is no base64: {error}", remedy="encode it once more") from error
        return _from_data(data, "image")

    def to_data_url(self) -> str:
        """``data:image/png;base64,…``, with the type that the data is of."""
        return f"data:{_format(self.data)[1]};base64,{base64.b64encode(self.data).decode('ascii')}"

    def pixels(self) -> "NDArray[np.uint8]":
        """(height, width, 3): :meth:`to_pillow` as an array."""
        return np.asarray(self.to_pillow())

    def to_pillow(self) -> "PIL.Image.Image":
        """The upright image in mode RGB; InputError if its data is damaged.

        As in transformers' image processors, what is transparent lies on white, CMYK goes by Pillow's plain formula,
        and colour profiles don't count. Unlike there, 16-bit grey keeps its upper byte (there, all above 255 is white).
        """
        with _decoding(self.name):
            opened = _open(self.data)
            return _upright(rgb(opened), _orientation(opened))


def open_images(sources: Iterable[ImageSource]) -> list[Image]:
    """Each by :meth:`Image.open`; OptionError for one image in place of several."""
    if not isinstance(sources, Iterable) or isinstance(sources, str | bytes):
        raise OptionError(f"images is {type(sources).__name__}, expected a list", remedy="for one: images=[image]")
    return list(map(Image.open, sources))


def regular_file(source: "str | os.PathLike[str]", max_bytes: int | None = None) -> Path:
    """``source`` as the path of a file that can be read; InputError for URLs, folders, devices, and more bytes."""
    name = os.fsdecode(source)
    if _URL.match(name):
        raise InputError(f"{name[:200]}: a URL where a file is expected", remedy="download it: nothing is fetched here")
    try:
        status = Path(name).stat()
        if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            Path(name).open("rb").close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: {reason}", remedy="give the path of a file that can be read") from error
    if not stat.S_ISREG(status.st_mode):
        kind = why_no_file(Path(name)) or "a folder, not a file"
        raise InputError(f"{name}: {kind}", remedy="give the path of a file that can be read")
    if max_bytes is not None and status.st_size > max_bytes:
        raise InputError(f"{name}: {status.st_size:,} bytes, at most {max_bytes:,} are read", remedy="scale it down")
    return Path(name)


def check_size(width: int, height: int) -> None:
    """InputError for no pixels, or more than are decoded."""
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{width:,} x {height:,} pixels, at most {MAX_PIXELS:,} in all are decoded", remedy="scale it down"
        )
    if not width or not height:
        raise InputError(f"{width} x {height} pixels: nothing to see", remedy="give another image")


def rgb(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Any Pillow image in mode RGB, see :meth:`Image.to_pillow`; InputError for 32-bit pixels of unknown range."""
    from PIL import Image as Pillow  # noqa: PLC0415

    image.load()
    if image.mode.startswith("I;16"):
        return Pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise InputError("its pixels are 32-bit numbers of unknown range", remedy="save it with 8 bits per channel")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_data(data: bytes, name: str) -> Image:
    with _decoding(name):
        opened = _open(data)
        width, height = opened.size[::-1] if _orientation(opened) in range(5, 9) else opened.size
        is_animated = getattr(opened, "is_animated", False)
    notes = ("animated, or of several pages: only the first is used",) if is_animated else ()
    return Image(data, name, width, height, hashlib.sha256(data).hexdigest(), notes)


def _png(source: Any) -> bytes:
    from PIL import Image as Pillow  # noqa: PLC0415

    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise OptionError(
                f"an image as an array is {source.dtype} of shape {source.shape}",
                remedy="give uint8 of shape (height, width, 3), RGB",
            )
        source = Pillow.fromarray(np.ascontiguousarray(source))
    if not isinstance(source, Pillow.Image):
        raise OptionError(
            f"an image is given as {type(source).__name__}", remedy="give a path, bytes, an array or a Pillow image"
        )
    with _decoding("image"):
        check_size(*source.size)
        encoded = io.BytesIO()
        _upright(rgb(source), _orientation(source)).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def _format(data: bytes) -> tuple[str, str]:
    """Pillow's name and the media type, by the first bytes: extensions lie."""
    for pattern, module, media_type in _FORMATS:
        if re.match(pattern, data, re.DOTALL):
            return module, media_type
    raise InputError("no image that can be read", remedy="give PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF")


def _open(data: bytes) -> "PIL.ImageFile.ImageFile":
    """The image with its header read and its size checked.

    Not by Pillow's ``open``: its limit of pixels, its warnings and the formats that it tries are the host's to set.
    """
    kind, _ = _format(data)
    reader = getattr(importlib.import_module(f"PIL.{kind}ImagePlugin"), f"{kind}ImageFile")
    if kind == "Jpeg":  # else opening reads the resolution from EXIF, and warns if that is damaged
        reader = type("_Jpeg", (reader,), {"_read_dpi_from_exif": lambda _: None})
    opened: PIL.ImageFile.ImageFile = reader(_Whole(data))
    check_size(*opened.size)
    return opened


class _Whole(io.BytesIO):
    """Data that ends with an error: a host may have told Pillow to fill up truncated images with grey."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size is not None and size > 0 and not data:
            raise EOFError("it is truncated")
        return data


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever Pillow raises over damaged data (nearly anything), as InputError; ours get the name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error.message}", remedy=error.remedy) from error.__cause__
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"{name}: damaged, or of a kind that can't be read ({error})", remedy="save or download it once more"
        ) from error


def _upright(image: "PIL.Image.Image", orientation: float) -> "PIL.Image.Image":
    from PIL.Image import Transpose  # noqa: PLC0415

    turns: dict[float, Transpose] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _orientation(image: "PIL.Image.Image") -> float:
    """How the image is to be turned upright, as ``PIL.ImageOps.exif_transpose`` finds it; 1 is upright.

    By EXIF, else by XMP. Pillow's own reader warns of damage in any tag. A TIFF it rotates while it loads.
    """
    if image.format == "TIFF":
        return 1
    found = _orientation_in_exif(_exif(image.info))
    if found is not None:
        return found
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or ""
    text = xmp.decode("latin-1") if isinstance(xmp, bytes) else xmp
    match = _XMP_ORIENTATION.search(text)
    return int(match[1]) if match else 1


def _exif(info: Mapping[Any, Any]) -> bytes:
    """The EXIF block, perhaps written as hexadecimal text as ImageMagick does it in PNG."""
    if (data := info.get("exif")) is None and (raw := info.get("Raw profile type exif")):
        try:
            data = bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:
            return b""
    return _EXIF_MARK.sub(b"", data or b"")


def _orientation_in_exif(data: bytes) -> float | None:
    """Tag 0x0112 of the first directory, a number of any type; None if there is none."""
    order = ">" if data[:2] == b"MM" else "<"
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", data, entry)
            if tag == _ORIENTATION_TAG and kind in _EXIF_NUMBERS and count:
                number = f"{order}{_EXIF_NUMBERS[kind]}"
                is_within = count * struct.calcsize(number) <= 4
                place = entry + 8 if is_within else struct.unpack_from(f"{order}I", data, entry + 8)[0]
                value: float = struct.unpack_from(number, data, place)[0]
                return value
    except struct.error:
        pass
    return None
