"""What each matrix of a model is multiplied by, in sums of squares: read while llama.cpp computes.

llama.cpp asks an evaluation callback before each node of a graph whether its values are wanted, computes up to those
that are, and calls it again. ``llama-imatrix`` gathers its importance matrices so (``tools/imatrix/imatrix.cpp``), and
this does as it does, to the same values. Two things it does not do: the same input of several matrices is squared
once, and the head, whose input nobody wants, is not computed at all.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.backends.llama_cpp.batch import Batch, ContextOptions
from edge_llama.backends.llama_cpp.devices import ggml_function
from edge_llama.errors import ArtifactError, EngineError
from edge_llama.files.gguf_text import GGUFArtifact

LEAST = 16
"""Rows: with fewer, llama-imatrix leaves a matrix out."""
_MOST_ROWS, _MOST_LOGITS = 512, 1 << 25
"""Of a batch: as llama-imatrix, and fewer where the vocabulary is large, since llama.cpp keeps room for all logits."""
_DENSE, _EXPERTS, _LAST = "MUL_MAT", "MUL_MAT_ID", "result_norm"
"""A matrix for all rows, one for each expert, and the name of the last node before the head."""
_F32, _I32 = 0, 26
_AUTO = -1
"""Flash attention where llama.cpp has it, as by default."""

Sums = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Sums of squares (n_experts, columns), and the tokens (n_experts,) that they are over."""


class _Tensor(ctypes.Structure):
    """``ggml_tensor``, whose fields no function gives (ggml.h, ggml 0.25)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """An input that was squared already: of which nodes, for how many matrices, and what came of it."""

    key: tuple[int | None, ...]
    found: Sums


class Collector:
    """Reads chunks of token ids and adds up, by the names that the tensors have in GGUF, what their inputs are.

    A context of its own over a tower's weights, which must outlive it; only one thread may use it.
    """

    def __init__(
        self, lib: Any, model: Any, artifact: GGUFArtifact, n_ctx: int, threads: int, options: ContextOptions
    ) -> None:
        """For chunks of ``n_ctx`` tokens of ``model``. EngineError if llama.cpp makes no such context."""
        self._lib, self._path = lib, artifact.path
        self.sums: dict[str, Sums] = {}
        """Since the beginning, float64: the sums of a chunk are added as one number."""
        self._seen: _Seen | None = None
        self._error: BaseException | None = None
        most = max(LEAST, min(_MOST_ROWS, 1 << (_MOST_LOGITS // artifact.n_vocab).bit_length() - 1))
        parts = -(-n_ctx // most)
        self._rows = -(-n_ctx // parts)
        params = options.params(lib, n_ctx=n_ctx, n_batch=self._rows, n_sequences=1, threads=threads)
        params.flash_attn_type = _AUTO
        params.cb_eval = self._callback = lib.ggml_backend_sched_eval_callback(self._look)
        self._context: Any = lib.llama_init_from_model(model, params)
        if not self._context:
            raise EngineError(
                f"{artifact.path}: llama.cpp cannot make a context of {n_ctx:,} tokens", remedy="take fewer"
            )
        self._batch = Batch(lib, self._rows)

    def read(self, tokens: Sequence[int]) -> None:
        """Add what comes of one chunk, from an empty context. After an error the sums are as before it.

        ArtifactError if a value is NaN or infinite, EngineError if llama.cpp fails; what interrupts it comes through.
        """
        before = self.sums
        self.sums = {}
        try:
            self._decode(tokens)
        except BaseException:
            self.sums = before
            raise
        self.sums = {**before, **{name: _added(before.get(name), found) for name, found in self.sums.items()}}

    def _decode(self, tokens: Sequence[int]) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        for begin in range(0, len(tokens), self._rows):
            rows = tokens[begin : begin + self._rows]
            self._seen = self._error = None
            self._batch.clear()
            # All rows are wanted of the last layer too, which would leave out what nobody asks for.
            self._batch.add(0, begin, rows, n_outputs=len(rows))
            status = self._lib.llama_decode(self._context, self._batch.filled())
            if self._error is not None:
                raise self._error
            if status:
                raise EngineError(f"{self._path}: llama.cpp failed at token {begin:,} with status {status}")

    def close(self) -> None:
        """Free the context. May be called twice."""
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None

    def _look(self, address: int, is_asked: bool, _data: int | None) -> bool:
        """Before a node: whether its values are wanted. After it: whether to go on. Nothing is raised through C."""
        try:
            node = _Tensor.from_address(address)
            if is_asked:
                return self._error is not None or _is_wanted(node)
            if self._error is not None or node.name.decode("utf-8", "replace") == _LAST:
                return False
            self._collect(node)
        except BaseException as error:  # KeyboardInterrupt comes here too
            self._error = error
            return is_asked  # it is called again after the node, and stops there
        return True

    def _collect(self, node: _Tensor) -> None:
        matrix, source = (_Tensor.from_address(node.src[at]) for at in range(2))
        name = _plain_name(matrix)
        key = node.src[1], node.src[2], matrix.ne[2], matrix.ne[3]
        if self._seen is None or self._seen.key != key:
            if _operation(node.op) == _EXPERTS:
                found = _by_expert(_values(source), _values(_Tensor.from_address(node.src[2])), matrix.ne[2])
            else:
                found = _of_all(_values(source), matrix.ne[2], matrix.ne[3])
            if not np.isfinite(found[0]).all():
                told = f"{self._path}: the input of {name} is NaN or infinite"
                raise ArtifactError(told, remedy="convert the model again")
            self._seen = _Seen(key, found)
        self.sums[name] = _added(self.sums.get(name), self._seen.found)


def _added(one: Sums | None, other: Sums) -> Sums:
    return other if one is None else (one[0] + other[0], one[1] + other[1])


def _is_wanted(node: _Tensor) -> bool:
    operation = _operation(node.op)
    if operation == _DENSE:
        source = _Tensor.from_address(node.src[1])
        is_large = source.type == _F32 and source.ne[1] >= LEAST
        return is_large and _plain_name(_Tensor.from_address(node.src[0])).startswith("blk.")
    return operation == _EXPERTS or node.name == _LAST.encode()


@cache
def _operation(number: int) -> str:
    found: bytes | None = ggml_function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)(number)
    return (found or b"").decode()


def _plain_name(tensor: _Tensor) -> str:
    """Without what ggml writes around names of copies: ``CUDA0#blk.0.attn_k.weight#0``."""
    name: str = tensor.name.decode("utf-8", "surrogateescape")
    return name.split("#")[1] if "#" in name else name


def _values(tensor: _Tensor) -> NDArray[Any]:
    """Float32 or int32 (ne3, ne2, ne1, ne0): llama.cpp's own memory, or a copy of what lies on a GPU."""
    kinds = {_F32: np.dtype(np.float32), _I32: np.dtype(np.int32)}
    dtype = kinds.get(tensor.type)
    if dtype is None or tensor.nb[0] != dtype.itemsize:
        raise EngineError(f"llama.cpp multiplies {tensor.name.decode()} in a form that is unknown")
    address = ctypes.addressof(tensor)
    nbytes = ggml_function("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)(address)
    if ggml_function("ggml_backend_buffer_is_host", ctypes.c_bool, ctypes.c_void_p)(tensor.buffer):
        raw = (ctypes.c_char * nbytes).from_address(tensor.data)
    else:
        raw = (ctypes.c_char * nbytes)()
        get = ggml_function(
            "ggml_backend_tensor_get", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
        )
        get(address, ctypes.addressof(raw), 0, nbytes)
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    return np.ndarray(shape, dtype, raw, strides=strides)


def _squares(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, columns) to (columns,): squares in float32, as llama-imatrix has them, sums in float64."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found in the sums
        found: NDArray[np.float64] = np.square(rows).sum(axis=0, dtype=np.float64)
    return found


def _of_all(source: NDArray[np.float32], n_matrices: int, n_outer: int) -> Sums:
    """Of a matrix for all rows, or several in three dimensions, which have one count for all: as llama-imatrix."""
    count = n_matrices * n_outer
    sums = np.zeros((count, source.shape[-1]))
    for outer, inner in np.ndindex(source.shape[:2]):
        sums[outer % n_outer * n_matrices + inner % n_matrices] += _squares(source[outer, inner])
    return sums.reshape(1, -1), np.array([prod(source.shape[:3]) // count], np.int64)


def _by_expert(source: NDArray[np.float32], ids: NDArray[np.int32], n_experts: int) -> Sums:
    """``source`` (1, tokens, 1 or chosen, columns), ``ids`` (1, 1, tokens, chosen) of the experts that each goes to."""
    rows, chosen = source[0], ids[0, 0]
    sums, counts = np.zeros((n_experts, rows.shape[-1])), np.zeros(n_experts, np.int64)
    for expert in np.unique(chosen):
        tokens, places = np.nonzero(chosen == expert)
        sums[expert] = _squares(rows[tokens, places % rows.shape[1]])
        counts[expert] = len(tokens)
    return sums, counts
