"""Is a file, bit for bit, what was written? Hashes inside the header, and their verification. No native code.

``edge_llama.tensor_sha256`` holds the SHA-256 of each tensor's data, in the table's order; ``edge_llama.sha256`` that
of the header with its own digits as zeros. So the one covers the other, and both together the whole file with every
byte hashed once: padding must be zero, and nothing may follow the last tensor. ``edge_llama.certificate`` is room for
what a later step proves about the weights.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from edge_llama.errors import ArtifactError, NotVerifiableError
from edge_llama.files.formats import Format
from edge_llama.files.gguf import Header, TensorInfo, Value, ValueType, array, encode_header, string

ROOT = "edge_llama.sha256"
TENSORS = "edge_llama.tensor_sha256"
CERTIFICATE = "edge_llama.certificate"
_UNKNOWN = "0" * 64
_CERTIFICATE_BYTES = 1 << 16
_READ = 1 << 22
_SAMPLE = 4096
_ARRAY_HEAD, _STRING_HEAD = 4 + 4 + 8, 4 + 8  # what stands between a key and its value's data


def header_with_room(
    fields: Mapping[str, Value], tensors: Sequence[tuple[str, tuple[int, ...], Format]], alignment: int
) -> bytes:
    """A header with zeros where :func:`seal` will put the hashes: its length is final, so data may follow it."""
    room = {
        TENSORS: array(ValueType.UINT8, np.zeros(32 * len(tensors), np.uint8)),
        CERTIFICATE: array(ValueType.UINT8, np.zeros(_CERTIFICATE_BYTES, np.uint8)),
        ROOT: string(_UNKNOWN),
    }
    return encode_header({**fields, **room}, tensors, alignment)[0]


def seal(header: bytes, hashes: Sequence[bytes]) -> bytes:
    """The header with the hashes in it: ``hashes`` are the SHA-256 of the tensors' data, 32 bytes each, in order."""
    sealed = bytearray(header)
    at = header.rindex(TENSORS.encode()) + len(TENSORS) + _ARRAY_HEAD
    sealed[at : at + 32 * len(hashes)] = b"".join(hashes)
    root = hashlib.sha256(sealed).hexdigest().encode()
    at = header.rindex(ROOT.encode()) + len(ROOT) + _STRING_HEAD
    sealed[at : at + len(root)] = root
    return bytes(sealed)


def verify(header: Header, on_progress: Callable[[int], None] | None = None) -> None:
    """Check every bit of the file that ``header`` was read from; ``on_progress`` is told the bytes just checked.

    Raises ArtifactError, naming what is damaged, or NotVerifiableError for a file that carries no hashes.
    """
    if not header.fields.keys() & {ROOT, TENSORS, CERTIFICATE}:
        raise NotVerifiableError(
            f"{header.path}: its structure is sound, but it carries no hashes to verify its contents",
            remedy="convert the original checkpoint with edge-llama to have them",
        )
    try:
        with header.path.open("rb") as file:
            _check_root(header, file)
            _check_tensors(header, file, on_progress)
    except OSError as error:
        raise ArtifactError(f"{header.path}: cannot be read: {error.strerror}") from error


def _check_root(header: Header, file: IO[bytes]) -> None:
    raw = file.read(header.data_offset)
    claimed = header.get(ROOT, str, "").encode("utf-8", "surrogateescape")
    unsealed = raw.replace(claimed, _UNKNOWN.encode(), 1) if len(claimed) == len(_UNKNOWN) else b""
    if hashlib.sha256(unsealed).hexdigest().encode() != claimed:
        raise _damaged(header, "its header")


def _check_tensors(header: Header, file: IO[bytes], on_progress: Callable[[int], None] | None) -> None:
    given = header.fields.get(TENSORS)
    hashes = given.data.tobytes() if given is not None and given.item is ValueType.UINT8 else b""
    end = header.data_offset
    for at, tensor in enumerate(header.tensors):
        if hash_of(file, tensor.offset, tensor.nbytes, on_progress) != hashes[32 * at : 32 * at + 32]:
            raise _damaged(header, f"tensor {tensor.name!r}")
        end = tensor.offset + tensor.nbytes
        padding = file.read(-end % header.alignment)
        if any(padding):
            raise _damaged(header, f"the padding after tensor {tensor.name!r}")
        end += len(padding)
    if end != header.file_size:
        raise _damaged(header, f"its length: {header.file_size:,} bytes instead of {end:,}")


def identity(headers: Sequence[Header]) -> str:
    """Which model the files are, to tell it from others of the same shape: 64 hexadecimal digits.

    It is a hash of the headers, the sizes, and the first, middle and last 4 KiB of each tensor, so that gigabytes
    need not be read. Headers that carry hashes tell every bit apart; they are not believed alone, since other tools
    copy them into files with other weights. For files without, other weights have another identity, but damage
    between the samples has not. ArtifactError if a file can't be read.
    """
    return identity_of((header.path, header.data_offset, header.tensors) for header in headers)


def identity_of(files: Iterable[tuple[Path, int, Sequence[TensorInfo]]]) -> str:
    """The same of any files: each with how many of its first bytes count whole, and with its tensors."""
    digest = hashlib.sha256()
    for path, start, tensors in files:
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(hash_of(file, 0, start) + size.to_bytes(8, "little"))
                for tensor in tensors:
                    last = tensor.offset + max(0, tensor.nbytes - _SAMPLE)
                    for at in (tensor.offset, (tensor.offset + last) // 2, last):
                        digest.update(hash_of(file, at, min(_SAMPLE, tensor.nbytes)))
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def hash_of(file: IO[bytes], offset: int, nbytes: int, on_progress: Callable[[int], None] | None = None) -> bytes:
    """The SHA-256 of ``nbytes`` bytes from ``offset``, or of those that the file has; it is left at their end."""
    digest = hashlib.sha256()
    file.seek(offset)
    while nbytes and (data := file.read(min(nbytes, _READ))):
        digest.update(data)
        nbytes -= len(data)
        if on_progress:
            on_progress(len(data))
    return digest.digest()


def _damaged(header: Header, what: str) -> ArtifactError:
    return ArtifactError(
        f"{header.path}: {what} is not as it was written", remedy="the file is damaged: copy or convert it again"
    )
