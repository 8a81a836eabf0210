"""tiktoken's rank files (Meta's tokenizer.model since Llama 3) as a byte-level BPE vocabulary.

A line holds a token's bytes in base64 and its rank. tiktoken merges the adjacent pair whose union has the lowest
rank; llama.cpp and ``tokenizers`` want pairs. Merging a token's own bytes by lower ranks alone leaves the one pair
that tiktoken joins to make it: whatever surrounds it, the same merges happen inside, so one merge per token says
all. A token that ends in more than two parts comes only from a whole word (``ignore_merges``).
"""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from converters.metadata.vocabulary import TokenType, Vocabulary
from edge_llama.errors import CheckpointError
from edge_llama.files.byte_letters import byte_letters

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,9}")
_MAX_BYTES = 256  # of a token; Llama 3's longest has 128, all spaces
_LETTERS = byte_letters()


def is_ranks(content: bytes) -> bool:
    """Whether a tokenizer.model is a rank file (sentencepiece models begin with a binary field)."""
    return bool(_LINE.fullmatch(content.partition(b"\n")[0].rstrip()))


def read_ranks(content: bytes, path: Path, pre: str, special: Sequence[str], n_vocab: int) -> Vocabulary:
    """The vocabulary of a rank file with ``special`` control tokens after it.

    It is padded to ``n_vocab`` tokens. Raises CheckpointError naming ``path`` and the line.
    """
    ranks = _ranks(content, path)
    tokens = [_letters(token) for token in ranks] + list(special)
    if len(tokens) > n_vocab:
        raise CheckpointError(
            f"{path}: {len(ranks):,} tokens and {len(special):,} special ones but the embedding has {n_vocab:,} rows",
            remedy="give the tokenizer.model that came with these weights",
        )
    types = [int(TokenType.NORMAL)] * len(ranks) + [int(TokenType.CONTROL)] * len(special)
    padding = range(len(tokens), n_vocab)
    tokens += [f"[PAD{index}]" for index in padding]
    types += [int(TokenType.UNUSED)] * len(padding)
    return Vocabulary("gpt2", pre, tokens, types, merges=list(_merges(ranks)), origin=path)


def _ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """Ranks by token, in order: 0, 1, 2, ... without a gap."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        if not _LINE.fullmatch(line.rstrip()):
            raise CheckpointError(
                f"{path}: line {number:,} is {line[:80]!r}, expected a token in base64 and its rank",
                remedy="download it again",
            )
        text, rank = line.split()
        try:
            token = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise CheckpointError(
                f"{path}: line {number:,} is {line[:80]!r}: {error}", remedy="download it again"
            ) from error
        if int(rank) != len(ranks) or not 0 < len(token) <= _MAX_BYTES or token in ranks:
            raise CheckpointError(
                f"{path}: line {number:,} gives {token[:80]!r} the rank {int(rank):,}, expected a new token of rank "
                f"{len(ranks):,}",
                remedy="download it again",
            )
        ranks[token] = len(ranks)
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise CheckpointError(f"{path}: no token for the byte {missing[0]:#04x}", remedy="download it again")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> Iterator[str]:
    """For each token the pair that makes it, as ``a b``, the lowest rank first."""
    for token, rank in ranks.items():
        parts = _parts(token, ranks, rank) if len(token) > 1 else []
        if len(parts) == 2:
            yield f"{_letters(parts[0])} {_letters(parts[1])}"


def _parts(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """What merging by ranks below ``limit`` leaves of ``token``."""
    parts = [token[at : at + 1] for at in range(len(token))]
    pairs = [ranks.get(token[at : at + 2], limit) for at in range(len(token) - 1)]
    while len(parts) > 2 and (best := min(pairs)) < limit:
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del pairs[at]
        for changed in (at - 1, at):
            if 0 <= changed < len(pairs):
                pairs[changed] = ranks.get(parts[changed] + parts[changed + 1], limit)
    return parts


def _letters(token: bytes) -> str:
    return "".join([_LETTERS[byte] for byte in token])
