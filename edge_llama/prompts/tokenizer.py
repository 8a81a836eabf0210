"""Text to token ids and back: what every backend's tokenizer offers."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from edge_llama.errors import ContextFullError

_COUNTED = 100_000  # characters that any tokenizer counts in no time


class Tokenizer(Protocol):
    """A model's vocabulary at work."""

    @property
    def n_vocab(self) -> int:
        """How many tokens there are; ids begin at 0."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Ids of the control tokens by their text: what only a chat template may write."""

    def control_tokens_of(self, template: str) -> Mapping[str, int]:
        """``control_tokens``, and others that a chat template of this source writes as one token each."""

    @property
    def special_texts(self) -> Mapping[str, str]:
        """``bos_token``, ``eos_token``, ... as chat templates name them."""

    @property
    def bos(self) -> int | None:
        """The token that begins a raw prompt, or None where the model wants none."""

    @property
    def frame(self) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens that the model wants before and after a text that stands alone, to embed it."""

    def encode(self, text: str, control: Mapping[str, int] | None = None) -> list[int]:
        """The ids of plain text; nothing in it becomes a token of ``control`` (None: ``control_tokens``)."""

    def encode_parts(self, parts: Sequence[str | int], control: Mapping[str, int] | None = None) -> list[int]:
        """The same of plain texts with tokens between them, which are given as ids; what is beside a text may matter.

        Negative ids stand for embeddings.
        """

    def least_tokens(self, text: str) -> int:
        """At least so many tokens ``text`` takes, by its length alone: 0 where that says nothing."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for, perhaps a part of a character; empty for control tokens."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""


def check_length(text: str, tokenizer: Tokenizer, n_ctx: int) -> None:
    """ContextFullError for a text so long that its tokens can't fit, without making them.

    llama.cpp's sentencepiece takes half a minute for a million newlines, and can't be stopped.
    """
    if len(text) > _COUNTED and (least := tokenizer.least_tokens(text)) >= n_ctx:
        raise ContextFullError(least, n_ctx, is_bound=True)
