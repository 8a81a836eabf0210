"""The texts that are measured with: the default ones, a person's own, and the chunks of tokens that they become.

The default texts lie beside this file in ``data/calibration`` and ``data/evaluation``, each as ``DOMAIN.NAME.txt``;
``data/LICENCES.md`` says where each is from and under which licence, ``scripts/default_texts.py`` how they came there.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import DocumentError, OptionError
from edge_llama.fidelity.overlaps import hashes, overlap
from edge_llama.fidelity.source import Chunk
from edge_llama.fidelity.text import Text, read_text
from edge_llama.host.regular_files import content_of

__all__ = [
    "Cut", "Encoded", "Text", "as_chats", "chunks", "cut", "default_texts", "fingerprint", "hashes", "overlap",
    "prompts", "read_text",
]  # fmt: skip

_DATA = Path(__file__).with_name("data")
_TURN = 1_200
"""Letters of a text that a user says at once, at most: some 300 tokens of English, so a chunk holds whole turns."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A text's tokens, without one that begins it."""

    name: str
    domain: str
    ids: NDArray[np.int64]
    """``(n,)``."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Texts in chunks of one length, and what is left over of each text after its last chunk."""

    chunks: list[Chunk]
    left_over: dict[str, int]
    """Tokens that are in no chunk, by the text's name; texts of which none is left over are not in it."""

    @property
    def n_left_over(self) -> int:
        """Tokens of all texts that are in no chunk."""
        return sum(self.left_over.values())


def default_texts(half: Literal["calibration", "evaluation"]) -> list[Text]:
    """The project's own texts of one half, in the order of domains and names. No document is in both halves.

    Examples:
        >>> from edge_llama.fidelity.texts import default_texts
        >>> sorted({text.domain for text in default_texts("evaluation")})
        ['code', 'dialogue', 'encyclopaedic', 'formal', 'languages', 'mathematics', 'prose', 'scripts']
    """
    folder = _DATA / half
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".txt")), key=lambda entry: entry.name)
    texts = []
    for entry in found:
        domain, name = entry.name.removesuffix(".txt").split(".", 1)
        content = content_of(entry).decode().replace("\r\n", "\n")
        texts.append(Text(name, domain, content))
    return texts


def prompts() -> list[str]:
    """Questions of several domains, to which a model's own answers are measured."""
    lines = content_of(_DATA / "prompts.txt").decode().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def fingerprint(texts: Iterable[Text]) -> str:
    """SHA-256 in hexadecimal digits of the texts' contents in their order; names and domains don't count."""
    return hashlib.sha256(b"".join(bytes.fromhex(text.sha256) for text in texts)).hexdigest()


def chunks(texts: Sequence[Text], encode: Callable[[str], Sequence[int]], n_ctx: int, *, bos: int | None) -> Cut:
    """Chunks of ``n_ctx`` tokens, each of one text, in the texts' order; and what is left over.

    ``encode`` gives a text's ids without one that begins it, with control tokens as plain text. ``bos`` begins each
    chunk and counts; None for a model that has none. OptionError for an ``n_ctx`` below 2, DocumentError if no text
    fills a chunk.
    """
    return cut((Encoded(t.name, t.domain, np.asarray(encode(t.content), np.int64)) for t in texts), n_ctx, bos=bos)


def cut(texts: Iterable[Encoded], n_ctx: int, *, bos: int | None) -> Cut:
    """As :func:`chunks`, of texts that are tokens already."""
    begin = np.asarray([] if bos is None else [bos], np.int64)
    step = n_ctx - len(begin)
    if n_ctx < 2:
        raise OptionError(f"a chunk of {n_ctx} tokens, expected at least 2", remedy="512 is usual")
    found: list[Chunk] = []
    left_over: dict[str, int] = {}
    longest = 0
    for text in texts:
        whole = len(text.ids) // step * step
        found.extend(
            Chunk(np.concatenate((begin, text.ids[at : at + step])), text.name, text.domain)
            for at in range(0, whole, step)
        )
        if rest := len(text.ids) - whole:
            left_over[text.name] = left_over.get(text.name, 0) + rest
        longest = max(longest, len(text.ids))
    if not found:
        raise DocumentError(
            f"too short: a chunk takes {step:,} tokens, the longest text has {longest:,}",
            remedy="give a longer text, or a smaller n_ctx",
        )
    return Cut(found, left_over)


def as_chats(texts: Iterable[Text], render: Callable[[str], Sequence[int]]) -> Iterator[Encoded]:
    """Each text as conversations of one user turn, as :func:`cut` takes them: passages of up to 1,200 letters.

    ``render`` gives a conversation's ids by the model's chat template, from the token that begins it to the one that
    has the assistant speak; so ``cut`` adds no ``bos`` to these. Passages end with a paragraph, or if that is too long
    with a line, a sentence or wherever they must; together they are the text.
    """
    for text in texts:
        turns = [np.asarray(render(passage), np.int64) for passage in passages(text.content)]
        yield Encoded(text.name, text.domain, np.concatenate([np.zeros(0, np.int64), *turns]))


def passages(content: str, most: int = _TURN) -> Iterator[str]:
    """Pieces of up to ``most`` letters; joined they are ``content``, but for pieces of white space alone."""
    begin = 0
    while begin < len(content):
        end = begin + most
        if end < len(content):
            window = content[begin:end]
            ends = (window.rfind(mark, most // 4) + len(mark) for mark in ("\n\n", "\n", ". ", "。", " "))
            end = begin + next((at for at in ends if at > most // 4), most)
        if piece := content[begin:end].strip():
            yield piece
        begin = end
