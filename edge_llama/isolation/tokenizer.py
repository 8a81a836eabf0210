"""The vocabulary of a model whose engine is in another process."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from edge_llama.isolation.wire import Facts
from edge_llama.isolation.worker import Worker


class RemoteTokenizer:
    """See :class:`edge_llama.prompts.tokenizer.Tokenizer`. Text is cut where the engine is; pieces are fetched once."""

    def __init__(self, worker: Worker, n_vocab: int, facts: Facts) -> None:
        self._worker = worker
        self.n_vocab = n_vocab
        self.control_tokens = facts.control_tokens
        self.special_texts = facts.special_texts
        self.bos = facts.bos

    @property
    def frame(self) -> tuple[Sequence[int], Sequence[int]]:
        """See :class:`edge_llama.prompts.tokenizer.Tokenizer`."""
        before, after = self._worker.call("frame")
        return before, after

    def control_tokens_of(self, template: str) -> Mapping[str, int]:
        """See :class:`edge_llama.prompts.tokenizer.Tokenizer`."""
        found: dict[str, int] = self._worker.call("control_tokens_of", template=template)
        return found

    def encode(self, text: str, control: Mapping[str, int] | None = None) -> list[int]:
        """See :class:`edge_llama.prompts.tokenizer.Tokenizer`."""
        found: list[int] = self._worker.call("encode", text=text, control=control)
        return found

    def encode_parts(self, parts: Sequence[str | int], control: Mapping[str, int] | None = None) -> list[int]:
        """See :class:`edge_llama.prompts.tokenizer.Tokenizer`."""
        found: list[int] = self._worker.call("encode_parts", parts=parts, control=control)
        return found

    def least_tokens(self, text: str) -> int:
        """See :class:`edge_llama.prompts.tokenizer.Tokenizer`."""
        found: int = self._worker.call("least_tokens", text=text)
        return found

    def piece(self, token: int) -> bytes:
        """See :class:`edge_llama.prompts.tokenizer.Tokenizer`."""
        return self._vocabulary[0][token]

    def is_end(self, token: int) -> bool:
        """See :class:`edge_llama.prompts.tokenizer.Tokenizer`."""
        return token in self._vocabulary[1]

    @cached_property
    def _vocabulary(self) -> tuple[list[bytes], frozenset[int]]:
        """The bytes of every token, and those that end an answer."""
        given: tuple[Any, bytes] = self._worker.call_with_bytes("vocabulary")
        value, joined = given
        borders = pairwise(accumulate(value["lengths"], initial=0))
        return [joined[start:stop] for start, stop in borders], frozenset(value["ends"])
