"""Texts as one stream of tokens in chunks of one length: what a calibration reads, none of which should be lost."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import DocumentError


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Chunks of ids, int64 (n_ctx,) each, and how many tokens at the end fill none."""

    chunks: list[NDArray[np.int64]]
    left_over: int


def packed(texts: Iterable[NDArray[np.int64]], n_ctx: int, *, bos: int | None) -> Packed:
    """The tokens of all texts one after another, cut every ``n_ctx``: as llama-imatrix and llama-perplexity do.

    Each text begins with ``bos``, and in each chunk it takes the place of the first token; None for a model that has
    none. DocumentError if no chunk is filled.
    """
    begin = np.asarray([] if bos is None else [bos], np.int64)
    parts = [part for ids in texts for part in (begin, ids[len(begin) :] if _begins(ids, bos) else ids)]
    stream = np.concatenate([np.zeros(0, np.int64), *parts])
    count = len(stream) // n_ctx
    if not count:
        raise DocumentError(
            f"too short: a chunk takes {n_ctx:,} tokens, the texts have {len(stream):,}",
            remedy="give longer texts, or a smaller --n-ctx",
        )
    chunks = stream[: count * n_ctx].reshape(count, n_ctx)
    if bos is not None:
        chunks[:, 0] = bos
    return Packed(list(chunks), len(stream) - count * n_ctx)


def _begins(ids: NDArray[np.int64], bos: int | None) -> bool:
    """Whether it has that token already, as what a chat template writes."""
    return bos is not None and len(ids) > 0 and ids[0] == bos
