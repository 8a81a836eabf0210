"""Importance matrices as GGUF: for each tensor its ``.in_sum2`` and its ``.counts``."""

from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import ArtifactError
from edge_llama.files.formats import F32
from edge_llama.files.gguf import (
    ALIGNMENT,
    Header,
    TensorInfo,
    Value,
    ValueType,
    array,
    encode_header,
    read_header,
    string,
    u32,
)
from edge_llama.files.gguf_metadata import IMPORTANCE
from edge_llama.host.regular_files import opened
from quant.importance.values import AGAIN, MOST_COUNT, OWN_KEYS, Importance, Sums

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _N_CHUNKS, _CHUNK_SIZE = (f"{IMPORTANCE}.{name}" for name in ("datasets", "chunk_count", "chunk_size"))


def read(path: Path) -> Importance:
    """The file's values. ArtifactError if it is damaged or no importance matrix; OSError."""
    with opened(path) as file:
        return _of_header(file, read_header(path))


def encoded(importance: Importance) -> Iterable[bytes]:
    """The bytes of the GGUF: keys and tensors in the order of ``llama-imatrix``, then our own keys."""
    fields: dict[str, Value] = {
        "general.type": string(IMPORTANCE),
        _DATASETS: array(ValueType.STRING, list(importance.datasets)),
        _N_CHUNKS: u32(importance.n_chunks),
        _CHUNK_SIZE: u32(max(1, importance.chunk_size)),
        **{key: string(text) for key, text in importance.notes.items()},
    }
    tensors: list[tuple[str, NDArray[np.float32]]] = []
    for name, (sums, counts) in sorted(importance.entries.items()):
        tensors += [(name + _SUMS, sums), (name + _COUNTS, counts.astype(np.float32)[:, None])]
    table = [(name, _stripped(values.shape), F32) for name, values in tensors]
    header, offsets = encode_header(fields, table)
    yield header
    end = len(header)
    for (_, values), offset in zip(tensors, offsets, strict=True):
        data = np.ascontiguousarray(values, "<f4").tobytes()
        yield bytes(offset - end) + data
        end = offset + len(data)
    yield bytes(-end % ALIGNMENT)


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the first dimensions of 1, of which ggml writes none but the columns."""
    return _stripped(shape[1:]) if len(shape) > 1 and shape[0] == 1 else shape


def _of_header(file: IO[bytes], header: Header) -> Importance:
    kind = header.get("general.type", str, "model")
    if kind != IMPORTANCE:
        raise ArtifactError(f"{header.path}: is a {kind}, no importance matrix", remedy=AGAIN)
    for key in (_DATASETS, _N_CHUNKS, _CHUNK_SIZE):
        if key not in header.fields:
            raise ArtifactError(f"{header.path}: has no {key}", remedy=AGAIN)
    notes = {key: value.data for key, value in header.fields.items() if _is_note(key, value)}
    datasets = tuple(header.get(_DATASETS, list, []))
    n_chunks, chunk_size = (max(0, header.get(key, int, 0)) for key in (_N_CHUNKS, _CHUNK_SIZE))
    return Importance(_entries(file, header), n_chunks, chunk_size, datasets, notes, header.path)


def _is_note(key: str, value: Value) -> bool:
    return key.startswith(OWN_KEYS) and value.type is ValueType.STRING


def _entries(file: IO[bytes], header: Header) -> dict[str, Sums]:
    by_name = {info.name: _values(file, header, info) for info in header.tensors}
    entries = {}
    for name in sorted({name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in by_name}):
        sums, counts = by_name.get(name + _SUMS), by_name.get(name + _COUNTS)
        if sums is None or counts is None:
            raise ArtifactError(f"{header.path}: {name}: needs both {_SUMS} and {_COUNTS}", remedy=AGAIN)
        if sums.size % counts.size:
            raise ArtifactError(
                f"{header.path}: {name}: has {sums.size:,} sums for {counts.size:,} experts", remedy=AGAIN
            )
        entries[name] = Sums(sums.reshape(counts.size, -1), _counts(header.path, name, counts))
    return entries


def _values(file: IO[bytes], header: Header, info: TensorInfo) -> NDArray[np.float32]:
    """All numbers of a tensor, float32 (n,). That they lie in the file was checked."""
    if info.format != F32:
        raise ArtifactError(f"{header.path}: {info.name}: is {info.format}, expected f32", remedy=AGAIN)
    file.seek(info.offset)
    return np.frombuffer(file.read(info.nbytes), "<f4")


def _counts(path: Path, name: str, counts: NDArray[np.float32]) -> NDArray[np.int64]:
    """Whole numbers, rounded as ``lround`` does."""
    if not (np.isfinite(counts).all() and np.abs(counts).max() < MOST_COUNT):
        raise ArtifactError(f"{path}: {name}: counts are NaN, infinite or beyond all texts", remedy=AGAIN)
    return np.floor(np.abs(counts.astype(np.float64)) + 0.5).astype(np.int64) * np.sign(counts).astype(np.int64)
