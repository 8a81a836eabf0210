"""What llama.cpp takes of the memory for a text tower, by arithmetic: nothing is loaded, and nothing asked of it.

Terms are those of llama-context.cpp, llama-kv-cache.cpp, llama-kv-cells.h, llama-vocab.cpp and ggml-cpu.c in
llama-cpp-python 0.3.36, as far as pages are touched: what it reserves for the logits of a whole batch is never written
where the last row's alone are wanted. The constants were measured (``benchmarks/memory.py`` prints predicted and
measured side by side).
"""

from edge_llama.backends.base import CacheSize, Setting
from edge_llama.backends.estimates import Need
from edge_llama.files.formats import FORMATS
from edge_llama.files.shape import TextShape, nearest_multiple

_CELLS = 256
"""The cache's length is a multiple of this."""
_CELL_BYTES = 150
"""Of a cell beside its values: position, sequences, and where it stands in the sets of used cells and positions."""
_TOKEN_BYTES, _MERGE_BYTES = 330, 250
"""Of a token and of a merge: in llama.cpp's tables, and in the header that we keep."""
_ENGINE_BYTES = 8 << 20
_FLOAT, _HALF = 4, 2


def need(shape: TextShape, setting: Setting, cache: CacheSize, *, is_reserved: bool = False) -> Need:
    """See :meth:`edge_llama.backends.base.Engine.need`."""
    cells = nearest_multiple(cache.n_cells, _CELLS)
    kv_format = FORMATS[setting.kv_format]
    kv_cache = shape.kv_values_per_token * cells * kv_format.block_bytes // kv_format.block_size
    return Need(
        # Of what is mapped only that need be there which every token meets.
        weights=shape.active_bytes if setting.is_mapped else shape.weight_bytes,
        kv_cache=kv_cache + cells * _CELL_BYTES,
        compute=_compute(shape, setting, cells, setting.n_batch if is_reserved else cache.n_sequences + 1),
        vocabulary=shape.n_vocab * _TOKEN_BYTES + shape.n_merges * _MERGE_BYTES,
        engine=_ENGINE_BYTES,
    )


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
    is_converted = setting.kv_format != "f32"  # for the product with values
    return states + scores * (_FLOAT + _HALF * is_converted)


def _feed_forward(shape: TextShape, rows: int) -> int:
    """Gate and up, of all experts that a token goes to."""
    return 2 * _FLOAT * rows * shape.n_ff
