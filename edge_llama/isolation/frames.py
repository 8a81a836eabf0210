"""What the two processes write to each other's pipes: JSON, with bytes after it where there are some.

    4 bytes "frme"
    u32     bytes of the JSON, little-endian as all numbers
    u32     bytes after it
    JSON    one object
    bytes

Never pickle: a process that was taken over by a file must not run code in the other.
"""

import json
import os
import struct
from collections.abc import Mapping
from typing import Any, Protocol

_MARK = b"frme"
_HEAD = struct.Struct("<4sII")
_UNITS = (",", ":")


class Readable(Protocol):
    """A buffered binary file."""

    def read(self, size: int, /) -> bytes:
        """So many bytes, fewer at its end only."""


def frame(fields: Mapping[str, Any], blob: bytes = b"") -> bytes:
    """The bytes of a frame. TypeError or ValueError for what JSON can't express; paths become text."""
    text = json.dumps(fields, separators=_UNITS, default=_plain).encode()
    return b"".join((_HEAD.pack(_MARK, len(text), len(blob)), text, blob))


def read(file: Readable) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, or None at the end, also if that comes within a frame. ValueError for what is none."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    mark, text_bytes, blob_bytes = _HEAD.unpack(head)
    if mark != _MARK:
        raise ValueError(f"{head!r} begins no frame")
    text, blob = file.read(text_bytes), file.read(blob_bytes)
    if len(text) < text_bytes or len(blob) < blob_bytes:
        return None
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"a frame is {type(fields).__name__}")
    return fields, blob


def write(descriptor: int, data: bytes) -> None:
    """All of ``data``. OSError once nobody reads. Nothing stays in a buffer that a fork would write again."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")
