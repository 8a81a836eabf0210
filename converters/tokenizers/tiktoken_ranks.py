"""tiktoken's rank files (Meta's tokenizer.model since Llama 3) as a byte-level BPE vocabulary.

A line holds a token's bytes in base64 and its rank. tiktoken merges the adjacent pair whose union has the lowest
rank; llama.cpp and ``tokenizers`` want pairs: all that make a token, since which of them come to lie side by side
depends on what surrounds it. In this order they are the merges of the published Llama 3's tokenizer.json. A token that
no pair makes comes only from a whole word (``ignore_merges``).
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
_LETTERS = dict(enumerate(byte_letters()))


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
    """Every pair of tokens whose union is one, as ``a b``: the lowest rank of the union first, then of the parts."""
    for token in ranks:
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs = [(ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks]
        for _, _, left, right in sorted(pairs):
            yield f"{_letters(left)} {_letters(right)}"


def _letters(token: bytes) -> str:
    return token.decode("latin-1").translate(_LETTERS)
