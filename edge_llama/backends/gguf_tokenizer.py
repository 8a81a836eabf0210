"""The vocabulary inside a GGUF file, at work through llama.cpp's tokenizer.

Which tokens are control tokens is asked of the file, of llama.cpp and of the chat template: files type them oddly.
"""

import ctypes
import re
import sys
import threading
from collections.abc import Container, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

from edge_llama.artifact import END_TOKENS, Artifact
from edge_llama.errors import EngineError, OptionError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # tokenizer.ggml.token_type
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]{3,}\]")
# What byte-pair merges leave to tokens that somebody made: "<div>" may be an ordinary word of code, "<|x|>" is none.
_MADE_TAG = re.compile(r"<[|｜].+[|｜]>|</?[a-z]+(?:_[a-z]+)+>|\[/?[A-Z_]{3,}\]")
_PIPED_TAG = re.compile(r"<[|｜].+[|｜]>")


def _byte_letters() -> str:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


def _is_looked_for(tag: str, template: str) -> bool:
    """Whether a template looks for the tag in what the model wrote (``content.split('</think>')``).

    Such a tag is part of contents; ``<|tag|>`` is none in any case.
    """
    quoted = rf"(['\"]){re.escape(tag)}\1"
    asked = (quoted + r"\s+(?:not\s+)?in\b", r"\.\w+\(\s*" + quoted)
    return not _PIPED_TAG.fullmatch(tag) and any(re.search(pattern, template) for pattern in asked)


class GGUFTokenizer:
    """The vocabulary inside a GGUF file. Keeps the Protocol :class:`edge_llama.tokenizer.Tokenizer`.

    Any thread may use it, also while another closes the model that owns the memory: hence the lock.
    """

    def __init__(self, lib: Any, vocab: Any, artifact: Artifact) -> None:
        self._lib = lib
        self._open_vocab = vocab
        self._lock = threading.RLock()
        self._header = artifact.header
        self._model = artifact.header.get("tokenizer.ggml.model", str, "")
        self.n_vocab = int(lib.llama_vocab_n_tokens(vocab))
        ends = artifact.header.fields.get(END_TOKENS)
        self._ends = frozenset() if ends is None else frozenset(int(token) for token in ends.data)
        self._piece = ctypes.create_string_buffer(512)
        self._is_end: dict[int, bool] = {}  # asked for every token that is written

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """Ids of the control tokens by their text.

        They are those that the file types so, those that llama.cpp types so at load (it knows turn ends by their
        text), tags that begin or end a sequence or a turn, and every ``<|tag|>`` that was added to the vocabulary:
        published files type ``<|im_end|>`` in each of these ways.
        """
        with self._lock:
            return {text: token for token, text, kind in self._tags if self._is_control(token, text, kind)}

    def control_tokens_of(self, template: str) -> Mapping[str, int]:
        """``control_tokens``, and tags of any type that ``template`` writes as they stand."""
        written = {
            text: token
            for token, text, kind in self._tags
            if (_TAG if kind == _USER_DEFINED else _MADE_TAG).fullmatch(text)
            and text in template
            and not _is_looked_for(text, template)
        }
        return {**written, **self.control_tokens}

    def _is_control(self, token: int, text: str, kind: int) -> bool:
        if kind == _CONTROL or self._lib.llama_vocab_get_attr(self._vocab, token) & self._lib.LLAMA_TOKEN_ATTR_CONTROL:
            return True
        if kind == _USER_DEFINED and _PIPED_TAG.fullmatch(text):
            return True
        # A plain word may end a turn ("\n" in a base model): to take it for a control token would change plain text.
        is_word = kind == _NORMAL and not _TAG.fullmatch(text)
        return not is_word and (token in self._borders or self.is_end(token))

    @cached_property
    def _borders(self) -> frozenset[int]:
        lib = self._lib
        return frozenset(ask(self._vocab) for ask in (lib.llama_vocab_bos, lib.llama_vocab_eos, lib.llama_vocab_eot))

    @cached_property
    def _tags(self) -> list[tuple[int, str, int]]:
        """Id, text and type of what may be a control token: few of a vocabulary of 128,000."""
        return list(self._find_tags())

    def _find_tags(self) -> Iterator[tuple[int, str, int]]:
        texts = self._header.fields["tokenizer.ggml.tokens"].data
        field = self._header.fields.get("tokenizer.ggml.token_type")
        kinds = [_NORMAL] * len(texts) if field is None else [int(kind) for kind in field.data]
        for token, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
            is_tag = kind != _NORMAL or (text[:1] in "<[" and _TAG.fullmatch(text))
            if text and is_tag and kind not in (_UNUSED, _BYTE):
                yield token, text, kind

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

    def encode(self, text: str, control: Mapping[str, int] | None = None) -> list[int]:
        """The ids of plain text; nothing in it becomes a token of ``control`` (None: ``control_tokens``).

        OptionError for a character that the vocabulary can't express: llama.cpp would drop it in silence, or end the
        process.
        """
        if self._missing_bytes and (lost := self._lost(text)):
            raise OptionError(f"the model's vocabulary can't express the character {lost!a}", remedy="leave it out")
        return self._encode_without(self.control_tokens if control is None else control, text, is_first=True)

    def _encode_without(self, control: Mapping[str, int], text: str, *, is_first: bool) -> list[int]:
        """llama.cpp finds user-defined tokens in plain text, too: text that has one is cut inside of it."""
        ids = self._tokenize(text) if is_first else self._continue(text)
        if set(ids).isdisjoint(control.values()):
            return ids
        formed = set(ids)
        texts = [word for word, token in control.items() if token in formed and len(word) > 1]
        cuts = [match.start() + 1 for match in re.finditer("|".join(map(re.escape, texts)), text)] if texts else []
        if not cuts:  # one character, or a word that only the vocabulary's own normalization forms
            return ids
        parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        return [
            token
            for index, part in enumerate(parts)
            for token in self._encode_without(control, part, is_first=is_first and not index)
        ]

    def _continue(self, text: str) -> list[int]:
        """The ids of text inside a word: without the space that sentencepiece vocabularies put before all text."""
        if self._model != "llama" or self._lost("\n"):
            return self._tokenize(text)
        before, ids = self._tokenize("\n"), self._tokenize("\n" + text)
        return ids[len(before) :] if ids[: len(before)] == before else self._tokenize(text)

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

    def _lost(self, text: str) -> str:
        """The first character that would have to be written by bytes that have no token; empty if there is none."""
        if self._model == "llama":  # a character that is a token needs none; spaces become one, also before the text
            letters = "\u2581" + text.replace(" ", "\u2581")
            known: Container[str] = self._known
        else:
            letters, known = text, ()
        data = letters.encode()
        if len(data.translate(None, self._missing_bytes)) == len(data):
            return ""
        missing = set(self._missing_bytes)
        return next(
            (char for char in letters if char not in known and not missing.isdisjoint(char.encode())), ""
        ).replace("\u2581", " ")

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._header.fields["tokenizer.ggml.tokens"].data)

    @cached_property
    def _missing_bytes(self) -> bytes:
        """Bytes that the vocabulary has no token for.

        In a byte-level one those that its training text never held, in one of sentencepiece all if it was made without
        byte fallback.
        """
        if self._model == "gpt2":
            letters = list(_byte_letters())
        elif self._model == "llama":
            letters = [f"<0x{byte:02X}>" for byte in range(256)]
        else:
            return b""
        return bytes(byte for byte, letter in enumerate(letters) if letter not in self._known)

    def least_tokens(self, text: str) -> int:
        """By the longest token: texts of megabytes take seconds to encode, and most fit no context."""
        return len(text.encode()) // self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        """Bytes of text that one token stands for at most; no bound where text is normalized or unknown."""
        kind = self._header.get("tokenizer.ggml.model", str, "")
        if kind not in ("llama", "gpt2"):
            return sys.maxsize
        space = "\u2581" if kind == "llama" else " "
        tokens = self._header.fields["tokenizer.ggml.tokens"].data
        return max(len(text.replace(space, " ").encode("utf-8", "surrogateescape")) for text in tokens)

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
