"""Importance matrices in the older of llama.cpp's two forms, ``.dat``: no header, no experts, no check of anything.

For each tensor its name, a number of chunks, and for each column the mean of squares times that number; then the number
of chunks of all, and the name of the text. All numbers are 32-bit, little-endian.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edge_llama.errors import ArtifactError
from edge_llama.host.regular_files import content_of
from quant.importance.values import AGAIN, Importance, Sums

_LEAST_ENTRY = 4 + 1 + 4 + 4 + 4
_LONGEST_NAME = 256


def read(path: Path) -> Importance:
    """The file's values, each tensor's as one expert's. ArtifactError if it is none, or cut short; OSError."""
    cursor = _Cursor(path, content_of(path))
    n_entries = cursor.number("the number of its tensors")
    if not 1 <= n_entries <= len(cursor.data) // _LEAST_ENTRY:
        raise cursor.fail("is neither GGUF nor an older .dat")
    entries: dict[str, Sums] = {}
    for at in range(1, n_entries + 1):
        name = cursor.text(f"the name of tensor {at:,}")
        if not name or name in entries:
            raise cursor.fail(f"tensor {at:,} has {'the name of another' if name else 'no name'}")
        n_chunks, n_values = cursor.number(name), cursor.number(name)
        if n_values < 1:
            raise cursor.fail(f"{name}: has {n_values:,} values")
        sums = np.frombuffer(cursor.take(4 * n_values, name), "<f4")
        # llama-quantize takes sums that are over nothing as they are.
        entries[name] = Sums(sums[None], np.array([max(1, n_chunks)], np.int64))
    n_chunks, datasets = 0, tuple[str, ...]()
    if cursor.at < len(cursor.data):
        n_chunks = max(0, cursor.number("the number of chunks"))
    if cursor.at < len(cursor.data):
        datasets = tuple(filter(None, [cursor.text("the name of the text")]))
    if cursor.at < len(cursor.data):
        raise cursor.fail(f"has {len(cursor.data) - cursor.at:,} bytes after its end")
    return Importance(entries, n_chunks, 0, datasets, path=path)


def encoded(importance: Importance) -> Iterable[bytes]:
    """The bytes of the file, as ``llama-imatrix --output-format dat`` writes them.

    Experts without a token weigh all columns alike; a tensor of which none has any is left out. The form has room for
    one text's name, the last one's, and for no key of ours.
    """
    chunk_size = max(1, importance.chunk_size)
    stored = {name: entry for name, entry in sorted(importance.entries.items()) if entry.counts.any()}
    yield struct.pack("<i", len(stored))
    for name, (sums, counts) in stored.items():
        encoded_name = name.encode("utf-8", "surrogateescape")
        n_chunks = -(-int(counts.max()) // chunk_size)
        yield struct.pack("<i", len(encoded_name)) + encoded_name
        yield struct.pack("<ii", n_chunks, sums.size)
        yield (importance.weights(name) * np.float32(n_chunks)).astype("<f4").tobytes()
    dataset = (importance.datasets or ("",))[-1].encode("utf-8", "surrogateescape")
    yield struct.pack("<ii", importance.n_chunks, len(dataset)) + dataset


class _Cursor:
    """What comes next in the file ``path``."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path, data, 0

    def fail(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {what}", remedy=AGAIN)

    def take(self, count: int, what: str) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise self.fail(f"ends within {what:.100}, or is no importance matrix")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def text(self, what: str) -> str:
        return self.take(self.number(what), what).decode("utf-8", "surrogateescape")
