"""GGUF files of encoders: models that embed text and write none, and what llama.cpp does not check of them.

Which they are, llama.cpp says in ``llama-model.cpp: create_memory`` (those without a KV cache) and ``llama-arch.cpp``;
numbers and defaults are those of ``llama.h`` and ``llama-vocab.cpp: load`` in llama-cpp-python 0.3.36.
"""

from edge_llama.errors import ArtifactError
from edge_llama.files.gguf import DAMAGED, Header
from edge_llama.files.gguf_limits import numbers

ENCODERS = frozenset(
    [
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "modern-bert",
        "neo-bert",
        "eurobert",
        "jina-bert-v2",
        "jina-bert-v3",
        "gemma-embedding",
        "llama-embed",
        "t5encoder",
    ]
)
POOLINGS: tuple[str | None, ...] = (None, "mean", "cls", "last", "rank")
"""By ``{arch}.pooling_type``, LLAMA_POOLING_TYPE_*; 0 and none is the same: every token's vector as it is."""
_WORD_PIECES = {"bos": 101, "unknown": 100, "seperator": 102}
"""Special tokens of a ``bert`` vocabulary and their ids where the file says nothing, as GGUF spells them."""


def check_encoder(header: Header) -> None:
    """What every file may say of pooling, and what an encoder needs. ArtifactError names what is wrong."""
    prefix = header.architecture
    pooling = header.get(f"{prefix}.pooling_type", int, 0)
    if not 0 <= pooling < len(POOLINGS):
        known = ", ".join(f"{number} ({name or 'none'})" for number, name in enumerate(POOLINGS))
        raise ArtifactError(f"{header.path}: {prefix}.pooling_type is {pooling}, known: {known}", remedy=DAMAGED)
    if prefix in ENCODERS:
        _check_heads(header)
    if header.get("tokenizer.ggml.model", str, "") == "bert":
        _check_special_tokens(header)


def _check_heads(header: Header) -> None:
    """llama.cpp asserts in its graph that keys and values are as wide; heads must share the width evenly."""
    prefix = f"{header.architecture}.attention."
    width = header.get(f"{header.architecture}.embedding_length", int, 0)
    heads = max(numbers(header, f"{prefix}head_count"), default=0)
    if width < 1 or heads < 1 or (width % heads and f"{prefix}key_length" not in header.fields):
        raise ArtifactError(
            f"{header.path}: {prefix}head_count is {heads:,}, expected a divisor of {width:,}", remedy=DAMAGED
        )
    key, value = (header.get(f"{prefix}{which}_length", int, width // heads) for which in ("key", "value"))
    if key != value:
        raise ArtifactError(
            f"{header.path}: {prefix}value_length is {value:,}, expected {key:,} as key_length", remedy=DAMAGED
        )


def _check_special_tokens(header: Header) -> None:
    """llama.cpp puts [CLS] and [SEP] around each text and asserts that there are such tokens."""
    n_tokens = len(header.fields["tokenizer.ggml.tokens"].data)
    for name, usual in _WORD_PIECES.items():
        key = f"tokenizer.ggml.{name}_token_id"
        token = header.get(key, int, usual)
        if not 0 <= token < n_tokens:
            said = "" if key in header.fields else " (it is missing: that is the usual one)"
            raise ArtifactError(f"{header.path}: {key} is {token}{said}, past the {n_tokens:,} tokens", remedy=DAMAGED)
