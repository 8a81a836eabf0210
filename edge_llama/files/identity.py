"""Which file is this? Four questions, and for each the one answer that sessions, caches and manifests hold.

- Is it bit for bit what was written? :func:`sha256_of` reads all of it: manifests.
- Which model is it, wherever it lies? :func:`identity_of` reads headers and samples of each tensor, since gigabytes
  can't be read at every start: sessions, histories and caches of what was measured. :func:`header_sha256` is the
  part of it that speed depends on: sizes and formats, not weights.
- Is a cache's file as it was left? :func:`sampled_sha256` needs no table of tensors: packed weights have none.
- Is it the very file that was seen before, untouched? :func:`file_state` reads nothing.

What they hash is stored on people's disks: it can't change without losing their sessions. (Whether ranges are those of
a vision tower, in whatever format its weights are, is a question about numbers, not files: :mod:`quant.ranges`.)
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from edge_llama.errors import UNREADABLE, ArtifactError
from edge_llama.files.gguf import Header, TensorInfo
from edge_llama.host.regular_files import opened

_READ = 1 << 22
_SAMPLES, _SAMPLE = 256, 4096


def identity_of(files: Iterable[tuple[Path, int, Sequence[TensorInfo]]]) -> str:
    """Which model ``files`` are, to tell it from others of the same shape: 64 hexadecimal digits.

    Of each file: how many of its first bytes (its header) count whole, and its tensors. It is a hash of the headers,
    the sizes, and the first, middle and last 4 KiB of each tensor. Headers that carry hashes tell every bit apart; they
    are not believed alone, since other tools copy them into files with other weights. For files without, other weights
    have another identity, but damage between the samples has not. ArtifactError if a file can't be read.
    """
    digest = hashlib.sha256()
    for path, start, tensors in files:
        try:
            with opened(path) as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(hash_of(file, 0, start) + size.to_bytes(8, "little"))
                for tensor in tensors:
                    last = tensor.offset + max(0, tensor.nbytes - _SAMPLE)
                    for at in (tensor.offset, (tensor.offset + last) // 2, last):
                        digest.update(hash_of(file, at, min(_SAMPLE, tensor.nbytes)))
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    return digest.hexdigest()


def header_sha256(header: Header) -> str:
    """The SHA-256 of the file's metadata and tensor table, 64 hexadecimal digits. OSError if it can't be read."""
    with opened(header.path) as file:
        return hash_of(file, 0, header.data_offset).hex()


def sampled_sha256(path: Path) -> str:
    """A hash of a file's size and of 256 pieces all over it, 64 hexadecimal digits. OSError if it can't be read."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with opened(path) as file:
        for piece in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * piece // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def file_state(path: Path) -> tuple[int, int]:
    """A file's size in bytes and the time of its last change in nanoseconds. OSError if there is none."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def sha256_of(path: Path, on_progress: Callable[[int], None] | None = None) -> str:
    """A file's SHA-256, 64 hexadecimal digits; ``on_progress`` is told the bytes just read.

    ArtifactError if it can't be read.
    """
    try:
        with opened(path) as file:
            return hash_of(file, 0, None, on_progress).hex()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error


def hash_of(
    file: IO[bytes], offset: int, nbytes: int | None, on_progress: Callable[[int], None] | None = None
) -> bytes:
    """The SHA-256 of ``nbytes`` bytes from ``offset`` (None: of all), or of those that the file has.

    The file is left at their end.
    """
    digest = hashlib.sha256()
    file.seek(offset)
    while nbytes != 0 and (data := file.read(_READ if nbytes is None else min(nbytes, _READ))):
        digest.update(data)
        nbytes = None if nbytes is None else nbytes - len(data)
        if on_progress:
            on_progress(len(data))
    return digest.digest()
