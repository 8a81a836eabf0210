"""The vocabulary inside a GGUF file, at work through llama.cpp's tokenizer."""

import ctypes
import re
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from unicodedata import normalize

from edge_llama.errors import EngineError
from edge_llama.files import text_rules
from edge_llama.files.gguf import Header
from edge_llama.files.gguf_text import END_TOKENS
from edge_llama.files.text_rules import SpacePrefix
from edge_llama.prompts.control_tokens import NORMAL, SPACE, USER_DEFINED, Vocabulary

_PRE, _ADD_SPACE_PREFIX = "tokenizer.ggml.pre", "tokenizer.ggml.add_space_prefix"


def overrides(lib: Any, header: Header) -> Any:
    """Metadata that llama.cpp is told in place of the file's, a table for ``llama_model_params``; None if none.

    A rule of splitting that is nearer to Llama 4's: llama.cpp's own for it tears marks off their letters, so Thai and
    Hindi would become other tokens than those that the model was trained with. And no space before text where a rule
    of our own says where it goes: see :class:`edge_llama.files.text_rules.SpacePrefix`.
    """
    table = (lib.llama_model_kv_override * 3)()
    count = 0
    if header.get(_PRE, str, "") == "llama4":
        table[count].tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
        table[count].key, table[count].value.val_str = _PRE.encode(), b"granite-embed-multi-97m"
        count += 1
    if text_rules.PREFIX + "space_prefix" in header.fields:
        table[count].tag = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL
        table[count].key, table[count].value.val_bool = _ADD_SPACE_PREFIX.encode(), False
        count += 1
    return table if count else None


class GGUFTokenizer(Vocabulary):
    """The vocabulary inside a GGUF file. Keeps the Protocol :class:`edge_llama.prompts.tokenizer.Tokenizer`.

    Any thread may use it, also while another closes the model that owns the memory: hence the lock.
    """

    def __init__(self, lib: Any, vocab: Any, header: Header) -> None:
        """``vocab`` is llama.cpp's, loaded with :func:`overrides`. ArtifactError for rules of ours that are none."""
        texts, types = header.fields["tokenizer.ggml.tokens"].data, header.fields.get("tokenizer.ggml.token_type")
        super().__init__(
            header.get("tokenizer.ggml.model", str, ""),
            texts,
            [NORMAL] * len(texts) if types is None else [int(kind) for kind in types.data],
            text_rules.from_gguf(header, len(texts)),
        )
        self._lib = lib
        self._open_vocab = vocab
        self._lock = threading.RLock()
        self._header = header
        self.n_vocab = int(lib.llama_vocab_n_tokens(vocab))
        ends = header.fields.get(END_TOKENS)
        self._ends = frozenset() if ends is None else frozenset(int(token) for token in ends.data)
        self._piece = ctypes.create_string_buffer(512)
        # Asked for every token that is written, which must not wait until another's text is encoded.
        self._pieces: dict[int, bytes] = {}
        self._is_end: dict[int, bool] = {}

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

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """As ``llama_tokenize`` puts them around a text: word pieces always have theirs, others as the file says.

        Asked of its parts: where such a token is missing, the function itself ends the process.
        """
        lib = self._lib
        with self._lock:
            is_pieces = lib.llama_vocab_type(self._vocab) == lib.LLAMA_VOCAB_TYPE_WPM
            before = after = -1
            if is_pieces or lib.llama_vocab_get_add_bos(self._vocab):
                before = int(lib.llama_vocab_bos(self._vocab))
            if is_pieces:
                after = int(lib.llama_vocab_sep(self._vocab))
            elif lib.llama_vocab_get_add_eos(self._vocab):
                after = int(lib.llama_vocab_eos(self._vocab))
        return [before] if before >= 0 else [], [after] if after >= 0 else []

    def _tokenize(self, text: str) -> list[int]:
        return self._by_engine(self._prepared(text, begins=True))

    def _continue(self, text: str) -> list[int]:
        if self._rules.space_prefix is None:
            return super()._continue(text)
        return self._by_engine(self._prepared(text, begins=False))

    def _prepared(self, text: str, *, begins: bool) -> str:
        """The text as llama.cpp must get it to do what the vocabulary's rules say of it."""
        rules = self._rules
        forms: tuple[Any, ...] = rules.unicode_forms
        words = self._whole_words.split(text) if self._whole_words else [text]
        for at in range(0, len(words), 2):
            before, after = (words[side] if 0 <= side < len(words) else "" for side in (at - 1, at + 1))
            word = words[at].lstrip() if before in self._strips[1] else words[at]
            word = word.rstrip() if after in self._strips[0] else word
            for form in forms:
                word = normalize(form, word)
            if rules.merges_spaces:
                word = re.sub(" +", " ", word.strip(" "))
            begins = begins if at == 0 else rules.space_prefix is SpacePrefix.METASPACE_ALWAYS
            is_bare = rules.space_prefix is SpacePrefix.EACH or (word and word[0] not in (" ", SPACE))
            if rules.space_prefix and begins and is_bare and text:
                word = " " + word
            words[at] = word
        return "".join(words)

    @cached_property
    def _whole_words(self) -> re.Pattern[str] | None:
        """The tokens that llama.cpp finds in any text, the longest first; None where it doesn't matter which."""
        if self._rules == text_rules.PLAIN:
            return None
        words = {text for text, kind in zip(self._texts, self._types, strict=True) if kind == USER_DEFINED and text}
        ordered = sorted(words, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None

    @cached_property
    def _strips(self) -> tuple[frozenset[str], frozenset[str]]:
        """Texts of the tokens that take the white space before them, and after them."""
        left, right = (
            frozenset(self._texts[token] for token in ids) for ids in (self._rules.lstrip, self._rules.rstrip)
        )
        return left, right

    def _by_engine(self, text: str) -> list[int]:
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
        if (known := self._pieces.get(token)) is not None:
            return known
        with self._lock:
            size = self._lib.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
            if size < 0:
                self._piece = ctypes.create_string_buffer(-size)
                return self.piece(token)
            return self._pieces.setdefault(token, self._piece.raw[:size])

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
