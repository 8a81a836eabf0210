"""What llama.cpp takes of the memory for a text tower, by arithmetic: nothing is loaded, and nothing asked of it.

Terms are those of llama-context.cpp, llama-kv-cache.cpp, llama-kv-cells.h, llama-vocab.cpp and ggml-cpu.c in
llama-cpp-python 0.3.36, as far as pages are touched: what it reserves for the logits of a whole batch is never written
where the last row's alone are wanted. The constants were measured (``benchmarks/memory.py`` prints predicted and
measured side by side).
"""

from functools import cache

from edge_llama.backends.base import CacheSize, Setting
from edge_llama.backends.estimates import Need
from edge_llama.backends.llama_cpp import build_probe
from edge_llama.errors import EngineError
from edge_llama.files.formats import FORMATS
from edge_llama.files.shape import TextShape, is_embedding, nearest_multiple

_CELLS = 256
"""The cache's length is a multiple of this."""
_CELL_BYTES = 150
"""Of a cell beside its values: position, sequences, and where it stands in the sets of used cells and positions."""
_TOKEN_BYTES, _MERGE_BYTES = 330, 250
"""Of a token and of a merge: in llama.cpp's tables, and in the header that we keep."""
_ENGINE_BYTES = 8 << 20
_KEPT = 32 << 20
"""Of what kernels worked with before the context grew glibc keeps a block as large as others that were freed before,
while the model was loaded, and no larger than this (its largest mmap threshold)."""
_FLOAT, _HALF = 4, 2
_PACKED = {"q4_0": 0, "q4_1": 0, "q8_0": 4, "q4_k": 4, "q5_k": 4, "q6_k": 0, "iq4_xs": 2}
"""Bytes that AMX's layout adds to a block, of the formats that have one."""


def need(shape: TextShape, setting: Setting, cache: CacheSize, *, is_reserved: bool = False) -> Need:
    """See :meth:`edge_llama.backends.base.Engine.need`."""
    cells = nearest_multiple(cache.n_cells, _CELLS)
    kv_format = FORMATS[setting.kv_format]
    kv_cache = shape.kv_values_per_token * cells * kv_format.block_bytes // kv_format.block_size
    return Need(
        weights=_weights(shape, setting, packs_for_amx()),
        kv_cache=kv_cache + cells * _CELL_BYTES,
        compute=_compute(shape, setting, cells, setting.n_batch if is_reserved else cache.n_sequences + 1),
        vocabulary=shape.n_vocab * _TOKEN_BYTES + shape.n_merges * _MERGE_BYTES,
        engine=_ENGINE_BYTES,
    )


@cache
def packs_for_amx() -> bool:
    """Whether the installed build keeps matrices as AMX takes them; without an engine that works here none does."""
    try:
        return "AMX_INT8 = 1" in build_probe.verdict().system_info
    except EngineError:
        return False


def _weights(shape: TextShape, setting: Setting, is_packed: bool) -> int:
    """With what AMX's layout adds to matrices (mmq.cpp: get_row_size), and with the head's own copy of embeddings.

    Of what is mapped only that need be there which every token meets, and nothing is packed.
    """
    if setting.is_mapped:
        return shape.active_bytes
    if not is_packed:
        return shape.weight_bytes
    matrices = [t for t in shape.tensors if len(t.shape) == 2 and not is_embedding(t.name) and t.format.name in _PACKED]
    heads = [t for t in shape.tensors if is_embedding(t.name) and t.format.name in _PACKED and not shape.has_output]
    added = sum(t.nbytes // t.format.block_bytes * _PACKED[t.format.name] for t in (*matrices, *heads))
    return shape.weight_bytes + added + sum(head.nbytes for head in heads)


def _compute(shape: TextShape, setting: Setting, cells: int, n_logits: int) -> int:
    """What lies between a batch's tokens and its logits at the widest point, with what kernels work with there."""
    rows = min(setting.n_batch, cells)
    stream = _FLOAT * rows * shape.n_embd
    logits = _FLOAT * shape.n_vocab * n_logits
    mask = (1 + shape.has_windows) * (_HALF if setting.flash_attention else _FLOAT) * rows * cells
    widest = max(_attention(shape, setting, rows, cells), _feed_forward(shape, rows))
    return 2 * stream + mask + widest + logits


def _attention(shape: TextShape, setting: Setting, rows: int, cells: int) -> int:
    """Queries, keys and values of a layer; without flash attention every head's products with all keys."""
    n_query = shape.n_head * shape.head_dim
    n_key_value = shape.kv_values_per_token // max(shape.n_layer, 1)
    states = _FLOAT * rows * (n_query + n_key_value)
    if setting.flash_attention:
        return states
    scores = rows * cells * shape.n_head
    if setting.kv_format == "f32":
        return states + scores * _FLOAT
    converted = scores * _HALF  # for the product with values
    return states + scores * _FLOAT + converted + min(_KEPT, shape.weight_bytes, converted * (cells - _CELLS) // cells)


def _feed_forward(shape: TextShape, rows: int) -> int:
    """Gate and up, of all experts that a token goes to."""
    return 2 * _FLOAT * rows * shape.n_ff
