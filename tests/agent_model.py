"""A small Llama with Llama 3.1's chat template that stands in for a coding agent's model, up to its whole context.

It writes the same answer to whatever it is asked, a text and a tool's call, however long the prompt is. So every engine
writes the same tokens, and what is compared is how prompts are read and what comes of calls.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import meta_folders
import numpy as np
from checkpoints import Shape, weights
from llama_models.llama3.tokenizer import Tokenizer
from numpy.typing import NDArray

import converters

N_CTX = 65_536
SHAPE = Shape(hidden=32, ffn=96, layers=1, heads=1, kv_heads=1)
"""So that a prompt of 30,000 tokens is read in seconds, most of which attention takes."""
SAID, CALLED = "I use a tool.", "read_file"
PYTHONIC, JSON = f"{SAID} [{CALLED}()]", f'{SAID} {{"name":"{CALLED}","parameters":{{}}}}'
"""Answers; the second one for Llama 3's real tokenizer."""
_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_MIXED = 0.05
"""Of what attention and feed-forward layers find: it moves every logit and decides nothing."""
_CERTAINTY = 2.0
"""How much longer the head's rows of the answer's tokens are than others: no sampling takes another token."""


def write(output: Path, *, ranks: bytes | None = None, answer: str = PYTHONIC) -> Path:
    """The model as a GGUF file; ``ranks`` are its tokenizer's, a small one's if not given.

    What the answer's token is followed by depends on that token alone, so none may come twice: ValueError.
    """
    ranks = ranks or meta_folders.small_ranks()
    with TemporaryDirectory(dir=output.parent) as scratch:
        (rank_file := Path(scratch) / "ranks").write_bytes(ranks)
        tokenizer = Tokenizer(rank_file)
        tensors = weights(SHAPE, tokenizer.n_words, tied=False, seed=0)
        _teach(tensors, _chain(tokenizer, answer))
        params = {"norm_eps": 1e-5, "vocab_size": tokenizer.n_words, "rope_theta": 500000.0, "use_scaled_rope": True}
        params |= {"n_kv_heads": SHAPE.kv_heads}
        folder = meta_folders.write(
            Path(scratch) / "checkpoint",
            meta_folders.meta_tensors(tensors, SHAPE),
            SHAPE,
            params,
            ranks,
            dtype="BF16",
            shards=1,
            embedding_axis=0,
        )
        converters.convert(folder, output, quant="q8_0", chat_template="llama3.1")
    return output


def _chain(tokenizer: Tokenizer, answer: str) -> list[int]:
    """The prompt's last token, the answer's, and the end."""
    tokens = tokenizer.encode(_HEADER, bos=False, eos=False, allowed_special="all")[-1:]
    tokens += tokenizer.encode(answer, bos=False, eos=False)
    tokens += tokenizer.encode("<|eot_id|>", bos=False, eos=False, allowed_special="all")
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"a token comes twice: {[tokenizer.decode([token]) for token in tokens]}")
    return tokens


def _teach(tensors: dict[str, NDArray[np.float32]], chain: Sequence[int]) -> None:
    """Have each token of the chain followed by the next one."""
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] *= _MIXED
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    for token, following in pairwise(chain):
        head[following] = _CERTAINTY * embedding[token]
