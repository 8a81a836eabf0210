"""Whether a video's file is all there: FFmpeg plays what is left of one that was cut short, as if that were all."""

import os
from pathlib import Path
from typing import BinaryIO

from edge_llama.errors import InputError
from edge_llama.host.regular_files import opened

_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_MOST_BOXES = 100_000


def check_whole(path: Path) -> None:
    """InputError if the file is shorter than its container says (MP4, MOV, WebM, MKV, AVI; others don't say)."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        declared = _declared(file, size)
    if declared > size:
        raise InputError(
            f"the video is cut short: {size:,} of {declared:,} bytes", remedy="copy or download it once more"
        )


def _declared(file: BinaryIO, size: int) -> int:
    head = file.read(12)
    if head[:4] == b"RIFF" and 0 < (length := int.from_bytes(head[4:8], "little")) < 0xFFFFFFFF:
        return 8 + length
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _segment_end(file)
    if head[4:8] in _BOXES:
        return _boxes_end(file, size)
    return 0


def _boxes_end(file: BinaryIO, size: int) -> int:
    """MP4 and MOV are a row of boxes: 32 bits of length, a type, and 64 bits of length if the first say 1."""
    end = 0
    for _ in range(_MOST_BOXES):
        file.seek(end)
        head = file.read(16)
        length = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")
        if end + 8 > size or length < 8:  # 0: up to the end of the file
            break
        end += length
    return end


def _segment_end(file: BinaryIO) -> int:
    """Matroska is a header and one segment, each an id of four bytes and a length; a live recording's is unknown."""
    file.seek(4)
    header = _variable(file)
    file.seek(header or 0, os.SEEK_CUR)
    if header is None or file.read(4) != b"\x18\x53\x80\x67" or (length := _variable(file)) is None:
        return 0
    return file.tell() + length


def _variable(file: BinaryIO) -> int | None:
    """EBML's integer: as many zero bits before the first one as bytes follow; None if unknown (all ones)."""
    first = int.from_bytes(file.read(1), "big")
    count = 8 - first.bit_length()
    value = (first << 8 * count | int.from_bytes(file.read(count), "big")) & ((1 << 7 * (count + 1)) - 1)
    return None if count > 7 or value == (1 << 7 * (count + 1)) - 1 else value
