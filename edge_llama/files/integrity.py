"""Is a file, bit for bit, what was written? Hashes inside the header, and their verification. No native code.

``edge_llama.tensor_sha256`` holds the SHA-256 of each tensor's data, in the table's order; ``edge_llama.sha256`` that
of the header with its own digits as zeros. So the one covers the other, and both together the whole file with every
byte hashed once: padding must be zero, and nothing may follow the last tensor. ``edge_llama.certificate`` is room for
what a later step proves about the weights: JSON with zeros after it, or zeros alone.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import IO

import numpy as np

from edge_llama.errors import UNREADABLE, ArtifactError, NotVerifiableError, OutputError
from edge_llama.files.formats import Format
from edge_llama.files.gguf import Header, Value, ValueType, array, encode_header, string
from edge_llama.files.identity import hash_of
from edge_llama.host.regular_files import opened

ROOT = "edge_llama.sha256"
TENSORS = "edge_llama.tensor_sha256"
CERTIFICATE = "edge_llama.certificate"
_UNKNOWN = "0" * 64
CERTIFICATE_BYTES = 1 << 16
"""Of the room for a certificate."""
_ARRAY_HEAD, _STRING_HEAD = 4 + 4 + 8, 4 + 8  # what stands between a key and its value's data
_ROOM = (
    struct.pack("<Q", len(CERTIFICATE))
    + CERTIFICATE.encode()
    + struct.pack("<IIQ", ValueType.ARRAY, ValueType.UINT8, CERTIFICATE_BYTES)
)
"""What stands before a certificate: no JSON holds these bytes."""


def header_with_room(
    fields: Mapping[str, Value], tensors: Sequence[tuple[str, tuple[int, ...], Format]], alignment: int
) -> bytes:
    """A header with zeros where :func:`seal` will put the hashes: its length is final, so data may follow it."""
    room = {
        TENSORS: array(ValueType.UINT8, np.zeros(32 * len(tensors), np.uint8)),
        CERTIFICATE: array(ValueType.UINT8, np.zeros(CERTIFICATE_BYTES, np.uint8)),
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


def certificate_of(header: Header) -> bytes:
    """What stands in the room for a certificate, without the zeros after it; empty if nothing does.

    ArtifactError if the field is of another type or size than that room.
    """
    value = header.fields.get(CERTIFICATE)
    if value is None:
        return b""
    if value.item is not ValueType.UINT8 or len(value.data) != CERTIFICATE_BYTES:
        raise ArtifactError(
            f"{header.path}: {CERTIFICATE} is not {CERTIFICATE_BYTES:,} bytes",
            remedy="convert the original checkpoint with edge-llama",
        )
    return np.asarray(value.data, np.uint8).tobytes().rstrip(b"\0")


def plain_sha256(header: Header) -> bytes:
    """The SHA-256 of the header that ``header`` was read from, with zeros for its own hash and for a certificate.

    It covers all of the file if the header's hashes do, and a certificate that holds it can stand in that file alone.
    ArtifactError if it can't be read, or carries no hashes.
    """
    raw, at = _head(header)
    raw[at : at + CERTIFICATE_BYTES] = bytes(CERTIFICATE_BYTES)
    _clear_root(raw, header)
    return hashlib.sha256(raw).digest()


def put_certificate(header: Header, content: bytes) -> None:
    """Put ``content`` into the file's room for a certificate, and seal it again.

    It is written where it lies, so it must be a file that has not taken its place yet. OutputError if it has no room,
    or can't be written.
    """
    if len(content) > CERTIFICATE_BYTES:
        raise OutputError(
            f"{header.path}: a certificate of {len(content):,} bytes, there is room for {CERTIFICATE_BYTES:,}"
        )
    raw, at = _head(header)
    raw[at : at + CERTIFICATE_BYTES] = content.ljust(CERTIFICATE_BYTES, b"\0")
    _clear_root(raw, header)
    root = hashlib.sha256(raw).hexdigest().encode()
    place = raw.rindex(_UNKNOWN.encode(), at + CERTIFICATE_BYTES)
    raw[place : place + len(root)] = root
    try:
        with header.path.open("r+b") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{header.path}: cannot be written: {error.strerror}", remedy="make room") from error


def _head(header: Header) -> tuple[bytearray, int]:
    """The header's bytes, and where its certificate begins. ArtifactError if there is no room for one."""
    try:
        with opened(header.path) as file:
            raw = bytearray(file.read(header.data_offset))
    except OSError as error:
        raise ArtifactError(f"{header.path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    found = raw.rfind(_ROOM)
    if found < 0 or ROOT not in header.fields or TENSORS not in header.fields:
        raise NotVerifiableError(
            f"{header.path}: has no room for a certificate, as files of other programs have none",
            remedy="convert the original checkpoint with edge-llama --certify",
        )
    return raw, found + len(_ROOM)


def _clear_root(raw: bytearray, header: Header) -> None:
    """Zeros in place of the header's own hash, which stands after the certificate."""
    claimed = header.get(ROOT, str, "").encode("utf-8", "surrogateescape")
    at = raw.rfind(claimed) if len(claimed) == len(_UNKNOWN) else -1
    if at < 0:
        raise _damaged(header, "its header")
    raw[at : at + len(_UNKNOWN)] = _UNKNOWN.encode()


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
        with opened(header.path) as file:
            _check_root(header, file)
            _check_tensors(header, file, on_progress)
    except OSError as error:
        raise ArtifactError(f"{header.path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error


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


def _damaged(header: Header, what: str) -> ArtifactError:
    return ArtifactError(
        f"{header.path}: {what} is not as it was written", remedy="the file is damaged: copy or convert it again"
    )
