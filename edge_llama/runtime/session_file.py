"""A conversation on disk: what was said, and the KV cache of it.

    8 bytes   "edgelses"
    u32       version of the format, little-endian as all numbers
    u32       bytes of the header
    header    JSON: the model, what the engine's bytes depend on, tokens, messages, in version 2 adapters
    logits    float32 of the last position, or nothing
    kv        the engine's bytes
    32 bytes  SHA-256 of all before

Nothing of a file reaches the engine before its hash was checked: llama.cpp trusts what it is given.
"""

import hashlib
import json
import os
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.adapters import AdapterSet, set_from_json, set_to_json
from edge_llama.errors import OptionError, OutputError, SessionError
from edge_llama.host.atomic import PARTIAL, new_file
from edge_llama.host.regular_files import opened
from edge_llama.prompts.messages import Message

MAGIC = b"edgelses"
VERSION, ADAPTED = 1, 2
"""The second is that of files whose cache was computed with adapters: who does not know of these must not use it."""
_PREFIX = struct.Struct("<8sII")
_HASH_BYTES = 32
_ABANDONED = 3600  # seconds
_DAMAGED = "the file is damaged or incomplete: use a copy, or begin a new chat"


@dataclass(slots=True, eq=False)
class State:
    """A sequence as a value: its ``tokens``, int32 ``(n,)``; ``kv``, the engine's bytes, uint8; and the logits.

    ``logits`` are those of the last position, float32 ``(n_vocab,)``, or None if they were not at hand.
    """

    tokens: NDArray[np.int32]
    kv: NDArray[np.uint8]
    logits: NDArray[np.float32] | None
    fixed: int = 0
    """See :attr:`edge_llama.runtime.prompt_cache.Held.fixed`."""
    tag: str = ""
    """Of which conversation it is; "" if of none."""
    adapters: AdapterSet = ()
    """What it was computed with."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.tokens.nbytes + self.kv.nbytes + (0 if self.logits is None else self.logits.nbytes)


@dataclass(frozen=True, slots=True)
class SavedChat:
    """What a session file holds. ``state`` is None if the chat's cache was not kept when it was saved.

    ``model`` names the model for people, ``identity`` tells it from others (:mod:`edge_llama.files.identity`);
    ``settings`` are those of the tower that made the state's bytes, and its ``n_ctx``; ``images`` are hashes.
    """

    model: str
    identity: str
    settings: Mapping[str, Any]
    messages: tuple[Message, ...]
    state: State | None
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Peek:
    """What a session file's header says of its KV cache: int32 ``tokens``, ``(n,)``, none if it has no cache."""

    identity: str
    settings: Mapping[str, Any]
    tokens: NDArray[np.int32]
    adapters: AdapterSet = ()
    """What the cache was computed with."""


def checked_path(path: object) -> Path:
    """``path`` as a Path; OptionError unless it is text or an object that stands for some, without NUL."""
    if isinstance(path, str | os.PathLike) and isinstance(name := os.fspath(path), str) and "\0" not in name:
        return Path(name)
    raise OptionError(f"a session's path is {path!r}, expected text", remedy="os.fsdecode makes one of bytes")


def write(path: Path, saved: SavedChat) -> None:
    """Write the file, whole or not at all, readable by its owner only. OutputError if it can't be written.

    It takes the place of an older session; another file of this name is left alone.
    """
    _check_place(path)
    parts = _encode(saved)
    try:
        with new_file(path, is_private=True) as file:
            file.writelines(parts)
        _tidy(path)
    except OSError as error:
        raise OutputError(f"{path}: the session can't be written: {error.strerror or error}") from error


def read(path: Path) -> SavedChat:
    """Read and check the file. SessionError if it is no session, damaged, or of a newer version."""
    try:
        with opened(path) as file:
            prefix = file.read(_PREFIX.size)
            size = os.fstat(file.fileno()).st_size
            header_bytes = _check_prefix(path, prefix, size)
            data = np.empty(size, np.uint8)
            data[: len(prefix)] = np.frombuffer(prefix, np.uint8)
            if file.readinto(data.data[len(prefix) :]) != size - len(prefix) or file.read(1):
                raise SessionError(f"{path}: its size changes while it is read", remedy="wait until it is written")
    except OSError as error:
        raise SessionError(f"{path}: the session can't be read: {error.strerror or error}") from error
    if hashlib.sha256(data[:-_HASH_BYTES].data).digest() != data[-_HASH_BYTES:].tobytes():
        raise SessionError(f"{path}: its contents are not as they were written", remedy=_DAMAGED)
    body = _PREFIX.size + header_bytes
    return _decode(path, data[_PREFIX.size : body].tobytes(), data[body:-_HASH_BYTES])


def peek(path: Path) -> Peek:
    """The file's header as it is, unchecked. SessionError if it is no session, or can't be understood."""
    try:
        with opened(path) as file:
            header_bytes = _check_prefix(path, file.read(_PREFIX.size), os.fstat(file.fileno()).st_size)
            fields = json.loads(file.read(header_bytes))
        adapters = set_from_json(fields.get("adapters", ()))
        return Peek(str(fields["identity"]), dict(fields["settings"]), _ids(fields["tokens"] or []), adapters)
    except OSError as error:
        raise SessionError(f"{path}: the session can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise SessionError(f"{path}: its header can't be understood: {error!r}", remedy=_DAMAGED) from error


def _check_prefix(path: Path, prefix: bytes, size: int) -> int:
    if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
        raise SessionError(f"{path}: this is no session of edge-llama", remedy="give a file that Chat.save wrote")
    _, version, header_bytes = _PREFIX.unpack(prefix)
    if version not in (VERSION, ADAPTED):
        raise SessionError(
            f"{path}: session format {version}, this edge-llama reads {VERSION} and {ADAPTED}",
            remedy="use a newer edge-llama",
        )
    if _PREFIX.size + header_bytes + _HASH_BYTES > size:
        raise SessionError(f"{path}: it is cut short: {size:,} bytes", remedy=_DAMAGED)
    return int(header_bytes)


def _encode(saved: SavedChat) -> list[bytes | memoryview]:
    state = saved.state
    logits = np.zeros(0, np.float32) if state is None or state.logits is None else state.logits
    header = {
        "model": saved.model,
        "identity": saved.identity,
        "settings": dict(saved.settings),
        "images": list(saved.images),
        "messages": [message.to_json() for message in saved.messages],
        "tokens": None if state is None else state.tokens.tolist(),
        "n_logits": len(logits),
    }
    adapters = () if state is None else state.adapters
    if adapters:
        header["adapters"] = set_to_json(adapters)
    text = json.dumps(header, ensure_ascii=False).encode()
    parts: list[bytes | memoryview] = [_PREFIX.pack(MAGIC, ADAPTED if adapters else VERSION, len(text)), text]
    parts.append(logits.astype("<f4", copy=False).tobytes())
    if state is not None:
        parts.append(state.kv.data)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return [*parts, digest.digest()]


def _decode(path: Path, header: bytes, body: NDArray[np.uint8]) -> SavedChat:
    """The hash has been checked: what doesn't fit here was written so, by another program."""
    try:
        fields = json.loads(header)
        n_logits, tokens = int(fields["n_logits"]), fields["tokens"]
        logits = body[: 4 * n_logits].view("<f4") if n_logits else None
        if n_logits < 0 or 4 * n_logits > len(body):
            raise ValueError(f"{n_logits} logits")
        adapters = set_from_json(fields.get("adapters", ()))
        state = None if tokens is None else State(_ids(tokens), body[4 * n_logits :], logits, adapters=adapters)
        return SavedChat(
            str(fields["model"]),
            str(fields["identity"]),
            {str(key): value for key, value in fields["settings"].items()},
            tuple(map(Message.from_json, fields["messages"])),
            state,
            tuple(map(str, fields["images"])),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OptionError) as error:
        raise SessionError(f"{path}: its header can't be understood: {error!r}", remedy=_DAMAGED) from error


def _ids(tokens: object) -> NDArray[np.int32]:
    """Those of a header; ValueError, TypeError or OverflowError for what is no list of numbers."""
    ids = np.array(tokens, np.int32)
    if ids.ndim != 1:
        raise ValueError(f"tokens of the shape {ids.shape}")
    return ids


def _check_place(path: Path) -> None:
    try:
        with opened(path) as file:
            is_session = file.read(len(MAGIC)) == MAGIC
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: the session can't be written there: {error.strerror or error}") from error
    if not is_session:
        raise OutputError(f"{path}: exists and is no session", remedy="choose another name, or remove it")


def _tidy(path: Path) -> None:
    """Remove what writers of the same file left that were killed: parts that nobody has written to for an hour."""
    for name in os.listdir(path.parent):  # noqa: PTH208 - a name may hold what glob takes for a pattern
        if name.startswith(f".{path.name}.") and name.endswith(PARTIAL):
            left = path.with_name(name)
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()
