"""What log-probabilities are told of: tokens, as texts and bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.sampling.logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """The texts of a vocabulary's tokens."""

    _tokenizer: Tokenizer
    _control: dict[int, str]
    _as_ids: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, as_ids: bool = False) -> "TokenTexts":
        """Those of a model; ``as_ids``: ``token_id:N``, as vLLM writes it. It may take a while: call it in a thread."""
        tokenizer.piece(0)  # another process's vocabulary comes over whole, with the first piece of it
        return cls(tokenizer, {token: text for text, token in tokenizer.control_tokens.items()}, as_ids)

    def text(self, token: int) -> str:
        """As text; a part of a character by its bytes, as OpenAI wrote it."""
        if self._as_ids:
            return f"token_id:{token}"
        if token in self._control:
            return self._control[token]
        data = self._tokenizer.piece(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def data(self, token: int) -> bytes | None:
        """In UTF-8; None for a control token."""
        return None if token in self._control else self._tokenizer.piece(token)

    def chat(self, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """A :class:`~edge_llama.server.openai.chat_objects.ChoiceLogprobs`."""
        return {"content": [self._entry(entry) for entry in entries], "refusal": None}

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = [self._token(each.token_id, each.logprob) for each in entry.top]
        return {**self._token(entry.token_id, entry.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.data(token)
        return {"token": self.text(token), "bytes": None if data is None else list(data), "logprob": finite(logprob)}


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI writes -9999 for what can't come."""
    return max(logprob, -9999.0)
