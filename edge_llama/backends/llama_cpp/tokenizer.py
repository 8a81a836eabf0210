"""The vocabulary inside a GGUF file, at work through llama.cpp's tokenizer."""

import ctypes
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from edge_llama.errors import EngineError
from edge_llama.files.gguf_text import END_TOKENS, GGUFArtifact
from edge_llama.prompts.control_tokens import NORMAL, Vocabulary


class GGUFTokenizer(Vocabulary):
    """The vocabulary inside a GGUF file. Keeps the Protocol :class:`edge_llama.prompts.tokenizer.Tokenizer`.

    Any thread may use it, also while another closes the model that owns the memory: hence the lock.
    """

    def __init__(self, lib: Any, vocab: Any, artifact: GGUFArtifact) -> None:
        header = artifact.header
        texts, types = header.fields["tokenizer.ggml.tokens"].data, header.fields.get("tokenizer.ggml.token_type")
        super().__init__(
            header.get("tokenizer.ggml.model", str, ""),
            texts,
            [NORMAL] * len(texts) if types is None else [int(kind) for kind in types.data],
        )
        self._lib = lib
        self._open_vocab = vocab
        self._lock = threading.RLock()
        self._header = header
        self.n_vocab = int(lib.llama_vocab_n_tokens(vocab))
        ends = header.fields.get(END_TOKENS)
        self._ends = frozenset() if ends is None else frozenset(int(token) for token in ends.data)
        self._piece = ctypes.create_string_buffer(512)
        self._is_end: dict[int, bool] = {}  # asked for every token that is written

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """See :attr:`edge_llama.prompts.control_tokens.Vocabulary.control_tokens`."""
        with self._lock:
            return super().control_tokens

    def _is_control_there(self, token: int) -> bool:
        return bool(self._lib.llama_vocab_get_attr(self._vocab, token) & self._lib.LLAMA_TOKEN_ATTR_CONTROL)

    @cached_property
    def _borders(self) -> frozenset[int]:
        lib = self._lib
        return frozenset(ask(self._vocab) for ask in (lib.llama_vocab_bos, lib.llama_vocab_eos, lib.llama_vocab_eot))

    @cached_property
    def special_texts(self) -> Mapping[str, str]:
        """``bos_token``, ``eos_token``, ... as chat templates name them; only those that the file sets."""
        tokens = self._header.fields["tokenizer.ggml.tokens"].data
        ids = {
            kind: self._header.fields.get(f"tokenizer.ggml.{key}_token_id")
            for kind, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        }
        return {f"{kind}_token": tokens[value.data] for kind, value in ids.items() if value is not None}

    @property
    def bos(self) -> int | None:
        """The token that begins a raw prompt, or None where the model wants none."""
        with self._lock:
            is_added = self._lib.llama_vocab_get_add_bos(self._vocab)
            return int(self._lib.llama_vocab_bos(self._vocab)) if is_added else None

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        while True:
            out = (ctypes.c_int32 * room)()
            with self._lock:
                count = self._lib.llama_tokenize(self._vocab, data, len(data), out, room, False, False)
            if count >= 0:
                return out[:count]
            room = -count

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""
        with self._lock:
            size = self._lib.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
            if size < 0:
                self._piece = ctypes.create_string_buffer(-size)
                return self.piece(token)
            return self._piece.raw[:size]

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        if (known := self._is_end.get(token)) is not None:
            return known
        with self._lock:
            found = token in self._ends or bool(self._lib.llama_vocab_is_eog(self._vocab, token))
        return self._is_end.setdefault(token, found)

    def close(self) -> None:
        """The model is about to be freed: what asks from now on gets an error."""
        with self._lock:
            self._open_vocab = None

    @property
    def _vocab(self) -> Any:
        if self._open_vocab is None:
            raise EngineError("the model is closed", remedy="open it again")
        return self._open_vocab
