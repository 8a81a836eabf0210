"""Text to token ids and back: what every backend's tokenizer offers."""

from collections.abc import Mapping
from typing import Protocol

from edge_llama.errors import ContextFullError

_COUNTED = 100_000  # bytes of text that any tokenizer counts in no time


class Tokenizer(Protocol):
    """A model's vocabulary at work."""

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

    def encode(self, text: str, control: Mapping[str, int] | None = None) -> list[int]:
        """The ids of plain text; nothing in it becomes a token of ``control`` (None: ``control_tokens``)."""

    @property
    def longest_piece(self) -> int | None:
        """Bytes of text that one token stands for at most; None where the tokenizer may leave some out."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for, perhaps a part of a character; empty for control tokens."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""


def check_length(text: str, tokenizer: Tokenizer, n_ctx: int) -> None:
    """ContextFullError for a text so long that its tokens can't fit, without making them.

    llama.cpp's sentencepiece takes half a minute for a million newlines, and can't be stopped.
    """
    longest = tokenizer.longest_piece
    if len(text) * 4 < _COUNTED or longest is None:
        return
    size = len(text.encode())
    if size > _COUNTED and (least := -(-size // longest)) >= n_ctx:
        raise ContextFullError(least, n_ctx, is_least=True)
