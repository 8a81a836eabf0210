"""GGUF headers, read and written: metadata fields and the tensor table. No native code, no tensor data.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2 and 3, little-endian.
llama.cpp ends the process on some malformed headers, so everything is checked here first.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import UNREADABLE, ArtifactError
from edge_llama.files.formats import BY_GGML_ID, Format
from edge_llama.host.regular_files import opened

MAGIC = b"GGUF"
SUFFIX = ".gguf"
VERSION = 3
ALIGNMENT = 32
MAX_DIMENSIONS = 4
DAMAGED = "the file is damaged: download or convert it again"
_MAX_NAME = 63  # ggml.h: GGML_MAX_NAME is 64 with its terminator
_T = TypeVar("_T")


class ValueType(IntEnum):
    """The type of a metadata value, as numbered in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_CODES = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


class Value(NamedTuple):
    """A metadata value with its type; arrays carry the type of their items."""

    type: ValueType
    data: Any
    item: ValueType | None = None


def u32(number: int) -> Value:
    """An unsigned 32-bit value: llama.cpp's usual integer."""
    return Value(ValueType.UINT32, number)


def f32(number: float) -> Value:
    """A 32-bit float value."""
    return Value(ValueType.FLOAT32, number)


def shortest(number: float) -> float:
    """The decimal that a float32 was written from: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def boolean(flag: bool) -> Value:
    """A truth value."""
    return Value(ValueType.BOOL, flag)


def string(text: str) -> Value:
    """A UTF-8 string value."""
    return Value(ValueType.STRING, text)


def array(item: ValueType, values: Sequence[Any] | NDArray[Any]) -> Value:
    """An array of ``item``: strings as a list, numbers as anything numpy takes."""
    return Value(ValueType.ARRAY, values, item)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of the tensor table. ``shape``: rows first, columns last; ``offset`` counts from the file's start."""

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its data, padding excluded."""
        return prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: metadata by key, tensors in file order."""

    path: Path
    version: int
    fields: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    file_size: int

    def get(self, key: str, kind: type[_T], default: _T) -> _T:
        """The value under ``key``, checked to be of ``kind`` (an int passes for a float); ``default`` if absent."""
        value = self.fields.get(key)
        if value is None:
            return default
        data = float(value.data) if kind is float and isinstance(value.data, int) else value.data
        if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
            raise ArtifactError(
                f"{self.path}: {key} is {value.data!r:.100}, expected a value of type {kind.__name__}", remedy=DAMAGED
            )
        return data

    @property
    def architecture(self) -> str:
        """``general.architecture``: the prefix of the hyperparameters' keys."""
        return self.get("general.architecture", str, "")


def is_named_gguf(name: str) -> bool:
    """Whether a file of this name is meant to be GGUF: its suffix, in capitals or not."""
    return name.lower().endswith(SUFFIX)


def is_gguf(path: Path) -> bool:
    """Whether the file at ``path`` is GGUF by its name, or by its first bytes: caches call files by their hashes."""
    try:
        with opened(path) as file:
            return is_named_gguf(path.name) or file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def gguf_files(folder: Path) -> list[Path]:
    """What is called so in ``folder``."""
    return sorted(file for file in folder.glob("*") if is_named_gguf(file.name))


def read_header(path: Path) -> Header:
    """Parse and check the header of the GGUF file at ``path``.

    Raises ArtifactError, naming file and field, for whatever is not well-formed: see ``tests/files/test_gguf.py``.
    """
    try:
        with opened(path) as file:
            return _Parser(path, file.read(1 << 24), path.stat().st_size).header()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error


class _Parser:
    """A cursor over the first bytes of the file, which grow as the header needs them."""

    def __init__(self, path: Path, start: bytes, file_size: int) -> None:
        self.path = path
        self.data = start
        self.size = file_size
        self.at = 0
        self.field = "the header"

    def fail(self, what: str, remedy: str = DAMAGED) -> ArtifactError:
        return ArtifactError(f"{self.path}: {self.field}: {what}", remedy=remedy)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; an error if the file ends first."""
        end = self.at + count
        if count < 0 or end > self.size:
            raise self.fail(
                f"needs {count:,} bytes at {self.at:,} but the file has {self.size:,}",
                "the file is cut short: download or convert it again",
            )
        if end > len(self.data):
            with opened(self.path) as file:
                self.data = file.read(max(end, 2 * len(self.data)))
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, what: str, least_bytes: int) -> int:
        """A 64-bit count of things that each take at least ``least_bytes``: checked before anything is allocated."""
        number = int(self.number("Q"))
        if number * least_bytes > self.size - self.at:
            raise self.fail(f"announces {number:,} {what}, more than the file's {self.size:,} bytes can hold")
        return number

    def text(self) -> str:
        return self.take(self.count("bytes of text", 1)).decode("utf-8", "surrogateescape")

    def header(self) -> Header:
        version = self._version()
        n_tensors, n_fields = self.count("tensors", 24), self.count("metadata fields", 13)
        fields: dict[str, Value] = {}
        for _ in range(n_fields):
            self.field = "metadata"
            key = self.text()
            self.field = f"metadata field {key!r}"
            if key in fields:
                raise self.fail("appears twice")
            fields[key] = self._value(self._type())
        alignment = self._alignment(fields)
        infos = [self._tensor_info() for _ in range(n_tensors)]
        data_offset = -(-self.at // alignment) * alignment
        return Header(
            self.path, version, fields, self._placed(infos, alignment, data_offset), alignment, data_offset, self.size
        )

    def _version(self) -> int:
        magic = self.take(4) if self.size >= 4 else self.data
        if magic != MAGIC:
            raise self._not_gguf(magic)
        version = int(self.number("I"))
        if version & 0xFFFF == 0:
            raise self.fail("the file is big-endian", "convert it again on a little-endian machine")
        if version not in (2, VERSION):
            raise self.fail(f"GGUF version {version} is not supported (2 and 3 are)", "convert the model again")
        return version

    def _not_gguf(self, magic: bytes) -> ArtifactError:
        if self.size == 0:
            return self.fail("the file is empty", "download or convert it again")
        if self.data.startswith(b"version https://git-lfs"):
            return self.fail("this is a Git LFS pointer, not the file itself", "run `git lfs pull`")
        if self.data[:64].lstrip().lower().startswith((b"<!doctype", b"<html")):
            return self.fail("this is an HTML page saved as a model", "download the file itself")
        return self.fail(f"not a GGUF file: it starts with {magic!r}", "give a .gguf file")

    def _type(self) -> ValueType:
        number = self.number("I")
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"has unknown type {number}") from None

    def _value(self, kind: ValueType) -> Value:
        if kind is ValueType.STRING:
            return Value(kind, self.text())
        if kind is ValueType.ARRAY:
            return self._array()
        return Value(kind, self.number(_CODES[kind]))

    def _array(self) -> Value:
        item = self._type()
        if item is ValueType.ARRAY:
            raise self.fail("is an array of arrays, which no reader supports")
        if item is ValueType.STRING:
            count = self.count("strings", 8)
            return Value(ValueType.ARRAY, self._texts(count), item)
        dtype = np.dtype(_CODES[item]).newbyteorder("<")
        raw = self.take(self.count("values", dtype.itemsize) * dtype.itemsize)
        return Value(ValueType.ARRAY, np.frombuffer(raw, dtype), item)

    def _texts(self, count: int) -> list[str]:
        """``count`` strings: a vocabulary has hundreds of thousands, so the common case runs without calls."""
        texts, unpack = [], struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = self.at + 8
            end = start + unpack(self.data, self.at)[0] if start <= len(self.data) else start
            if end <= len(self.data):
                texts.append(self.data[start:end].decode("utf-8", "surrogateescape"))
                self.at = end
            else:
                texts.append(self.text())
        return texts

    def _alignment(self, fields: Mapping[str, Value]) -> int:
        self.field = "metadata field 'general.alignment'"
        value = fields.get("general.alignment", u32(ALIGNMENT))
        if value.type is not ValueType.UINT32 or value.data == 0 or value.data & (value.data - 1):
            raise self.fail(f"{value.data!r} is no power of two")
        return int(value.data)

    def _tensor_info(self) -> TensorInfo:
        self.field = "the tensor table"
        name = self.text()
        self.field = f"tensor {name!r}"
        if len(name.encode("utf-8", "surrogateescape")) > _MAX_NAME:
            raise self.fail(f"its name is longer than {_MAX_NAME} bytes")
        n_dims = self.number("I")
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise self.fail(f"has {n_dims} dimensions, expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(int(self.number("Q")) for _ in range(n_dims))[::-1]
        number = self.number("I")
        format_ = BY_GGML_ID.get(number)
        if format_ is None:
            raise self.fail(f"has unknown number format {number}", "the file may be newer than this version")
        if min(shape) < 1 or prod(shape) > 1 << 62:
            raise self.fail(f"has impossible shape {list(shape)}")
        if shape[-1] % format_.block_size:
            raise self.fail(f"its rows of {shape[-1]} are no multiple of the {format_.block_size} of {format_}")
        return TensorInfo(name, shape, format_, int(self.number("Q")))

    def _placed(self, infos: Iterable[TensorInfo], alignment: int, data_offset: int) -> tuple[TensorInfo, ...]:
        """The tensors with offsets from the file's start, each checked to lie inside the file, alone."""
        placed: dict[str, TensorInfo] = {}
        for info in infos:
            self.field = f"tensor {info.name!r}"
            if info.name in placed:
                raise self.fail("appears twice")
            if info.offset % alignment:
                raise self.fail(f"its offset {info.offset} is no multiple of the alignment {alignment}")
            start = data_offset + info.offset
            if start + info.nbytes > self.size:
                raise self.fail(
                    f"its data ends at byte {start + info.nbytes:,} but the file has {self.size:,}",
                    "the file is cut short: download or convert it again",
                )
            placed[info.name] = TensorInfo(info.name, info.shape, info.format, start)
        end = data_offset
        for info in sorted(placed.values(), key=lambda info: info.offset):
            self.field = f"tensor {info.name!r}"
            if info.offset < end:
                raise self.fail("its data overlaps another tensor's")
            end = info.offset + info.nbytes
        return tuple(placed.values())


def encode_header(
    fields: Mapping[str, Value], tensors: Sequence[tuple[str, tuple[int, ...], Format]], alignment: int = ALIGNMENT
) -> tuple[bytes, list[int]]:
    """The bytes of a version 3 header, padded, and each tensor's offset from the file's start.

    ``tensors`` gives name, shape (rows first) and format in the order in which their data follows. ValueError names
    the key whose value its type cannot hold.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(fields))]
    for key, value in fields.items():
        parts.append(_encode_field(key, value))
    offsets, offset = [], 0
    for name, shape, format_ in tensors:
        offsets.append(offset)
        parts.append(_encode_text(name) + struct.pack("<I", len(shape)))
        parts.append(struct.pack(f"<{len(shape)}QIQ", *reversed(shape), format_.ggml_id, offset))
        size = prod(shape[:-1]) * format_.row_bytes(shape[-1])
        offset += size + -size % alignment
    header = b"".join(parts)
    header += bytes(-len(header) % alignment)
    return header, [len(header) + offset for offset in offsets]


def _encode_field(key: str, value: Value) -> bytes:
    try:
        return _encode_text(key) + struct.pack("<I", value.type) + _encode(value)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        kind = value.type.name if value.item is None else f"array of {value.item.name}"
        raise ValueError(f"{key} is {value.data!r:.100}, no {kind.lower()}: {error}") from error


def _encode_text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _encode(value: Value) -> bytes:
    if value.type is ValueType.STRING:
        return _encode_text(value.data)
    if value.item is None:
        return struct.pack("<" + _CODES[value.type], value.data)
    head = struct.pack("<IQ", value.item, len(value.data))
    if value.item is ValueType.STRING:
        return head + b"".join(map(_encode_text, value.data))
    return head + np.asarray(value.data, np.dtype(_CODES[value.item]).newbyteorder("<")).tobytes()
