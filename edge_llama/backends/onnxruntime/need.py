"""What ONNX Runtime takes of the memory for a text tower, by arithmetic.

Weights are mapped as the processor's kernels want them (:mod:`edge_llama.backends.onnxruntime.prepacked`), and so count
as long as the memory suffices. Attention holds no products of all queries with all keys at once. The constants were
measured (``benchmarks/memory.py``).
"""

from edge_llama.backends.base import CacheSize, Setting
from edge_llama.backends.estimates import Need
from edge_llama.files.formats import FORMATS
from edge_llama.files.shape import TextShape

_TOKEN_BYTES = 1900
"""Of a token with its merges, in the tables of the tokenizer's library."""
_ENGINE_BYTES = 14 << 20
_FLOAT = 4


def need(shape: TextShape, setting: Setting, cache: CacheSize) -> Need:
    """What a tower of this shape takes with this setting and a full cache, which is that of one conversation."""
    kv_format = FORMATS[setting.kv_format]
    rows = min(setting.n_batch, cache.n_ctx)
    states = _FLOAT * rows * (4 * shape.n_embd + 3 * shape.n_ff)
    return Need(
        weights=shape.weight_bytes,
        kv_cache=shape.kv_values_per_token * cache.n_ctx * kv_format.block_bytes // kv_format.block_size,
        compute=states + 2 * _FLOAT * shape.n_vocab,
        vocabulary=shape.n_vocab * _TOKEN_BYTES,
        engine=_ENGINE_BYTES,
    )
