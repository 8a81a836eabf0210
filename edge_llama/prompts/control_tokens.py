"""What text may become, for every tokenizer: nothing that a person types is a control token, nothing of it is lost.

Which tokens are control tokens is asked of the file, of the engine and of the chat template: files type them oddly.
"""

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise

from edge_llama.errors import OptionError
from edge_llama.files.byte_letters import byte_letters
from edge_llama.files.text_rules import PLAIN, SpacePrefix, TextRules
from edge_llama.prompts.encoded_texts import EncodedTexts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens, as sentencepiece and GGUF (``tokenizer.ggml.token_type``) number them."""
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""Kinds of vocabularies, as GGUF calls them: of letters that stand for bytes, of text with ``▁`` for a space."""
SPACE = "\u2581"
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]{3,}\]")
# What byte-pair merges leave to tokens that people invent: "<div>" may be an ordinary word of code, "<|x|>" is none.
_ARTIFICIAL_TAG = re.compile(r"<[|｜].+[|｜]>|</?[a-z]+(?:_[a-z]+)+>|\[/?[A-Z_]{3,}\]")
_MOST_COMPOSED = 4  # bytes of UTF-8 that normalizing makes one: of a letter in bold (NFKC)
_PIPED_TAG = re.compile(r"<[|｜].+[|｜]>")


class Vocabulary(ABC):
    """The half of the Protocol :class:`edge_llama.prompts.tokenizer.Tokenizer` that is the same for every tokenizer."""

    def __init__(self, kind: str, texts: Sequence[str], types: Sequence[int], rules: TextRules = PLAIN) -> None:
        """``texts`` and ``types`` of the tokens in order; ``kind`` is one of those above, or another.

        Of ``rules`` is heeded here what concerns tokens that stand beside a text; the rest is :meth:`_tokenize`'s.
        """
        self._kind = kind
        self._texts = texts
        self._types = types
        self._rules = rules
        self._encoded = EncodedTexts()

    @abstractmethod
    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""

    @abstractmethod
    def _tokenize(self, text: str) -> list[int]:
        """The ids of a text, by the engine; tokens that were added to the vocabulary may be among them."""

    @abstractmethod
    def _is_control_there(self, token: int) -> bool:
        """Whether the engine takes it for a control token, whatever its type is in the file."""

    @property
    @abstractmethod
    def _borders(self) -> Container[int]:
        """Tokens that begin or end a sequence or a turn."""

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """Ids of the control tokens by their text.

        They are those that the file types so, those that the engine types so at load (llama.cpp knows turn ends by
        their text), tags that begin or end a sequence or a turn, and every ``<|tag|>`` that was added to the
        vocabulary: published files type ``<|im_end|>`` in each of these ways.
        """
        return {text: token for token, text, kind in self._tags if self._is_control(token, text, kind)}

    def control_tokens_of(self, template: str) -> Mapping[str, int]:
        """``control_tokens``, and tags of any type that ``template`` writes as they stand."""
        written = {
            text: token
            for token, text, kind in self._tags
            if (_TAG if kind == USER_DEFINED else _ARTIFICIAL_TAG).fullmatch(text)
            and text in template
            and not _is_looked_for(text, template)
        }
        return {**written, **self.control_tokens}

    def _is_control(self, token: int, text: str, kind: int) -> bool:
        if kind == CONTROL or self._is_control_there(token):
            return True
        if kind == USER_DEFINED and _PIPED_TAG.fullmatch(text):
            return True
        # A plain word may end a turn ("\n" in a base model): to take it for a control token would change plain text.
        is_word = kind == NORMAL and not _TAG.fullmatch(text)
        return not is_word and (token in self._borders or self.is_end(token))

    @cached_property
    def _tags(self) -> list[tuple[int, str, int]]:
        """Id, text and type of what may be a control token: few of a vocabulary of 128,000."""
        return list(self._find_tags())

    def _find_tags(self) -> Iterator[tuple[int, str, int]]:
        for token, (text, kind) in enumerate(zip(self._texts, self._types, strict=True)):
            is_tag = kind != NORMAL or (text[:1] in "<[" and _TAG.fullmatch(text))
            if text and is_tag and kind not in (UNUSED, BYTE):
                yield token, text, kind

    def encode(self, text: str, control: Mapping[str, int] | None = None) -> list[int]:
        """The ids of plain text; nothing in it becomes a token of ``control`` (None: ``control_tokens``).

        OptionError for a character that the vocabulary can't express: engines would drop it in silence, or end the
        process.
        """
        return self.encode_parts([text], control)

    def encode_parts(self, parts: Sequence[str | int], control: Mapping[str, int] | None = None) -> list[int]:
        """The ids of plain texts, as :meth:`encode` makes them, and of tokens between them, which are given as ids."""
        control = self.control_tokens if control is None else control
        ids: list[int] = []
        for at, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            elif text := self._beside(part, parts[at - 1] if at else None, parts[at + 1 : at + 2]):
                if self._missing_bytes and (lost := self._lost(text)):
                    raise OptionError(
                        f"the model's vocabulary can't express the character {lost!a}", remedy="leave it out"
                    )
                is_first = not ids or self._rules.space_prefix is not SpacePrefix.METASPACE_FIRST
                encode = partial(self._encode_without, control, text, is_first=is_first)
                ids += self._encoded.get(text, (is_first, frozenset(control.values())), encode)
        return ids

    def _beside(self, text: str, before: str | int | None, after: Sequence[str | int]) -> str:
        """What the tokens beside a text leave of it."""
        text = text.lstrip() if before in self._rules.rstrip else text
        return text.rstrip() if after and after[0] in self._rules.lstrip else text

    def _encode_without(self, control: Mapping[str, int], text: str, *, is_first: bool) -> list[int]:
        """Engines find user-defined tokens in plain text, too: text that has one is cut inside of it."""
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
        if self._kind != SENTENCEPIECE or self._lost("\n"):
            return self._tokenize(text)
        before, ids = self._tokenize("\n"), self._tokenize("\n" + text)
        return ids[len(before) :] if ids[: len(before)] == before else self._tokenize(text)

    def _lost(self, text: str) -> str:
        """The first character that would have to be written by bytes that have no token; empty if there is none."""
        # In sentencepiece's a character that is a token needs none; spaces become one, also before the text.
        if self._kind == SENTENCEPIECE:
            letters = SPACE + text.replace(" ", SPACE)
            known: Container[str] = self._known
        else:
            letters, known = text, ()
        data = letters.encode()
        if len(data.translate(None, self._missing_bytes)) == len(data):
            return ""
        missing = set(self._missing_bytes)
        return next(
            (char for char in letters if char not in known and not missing.isdisjoint(char.encode())), ""
        ).replace(SPACE, " ")

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._texts)

    @cached_property
    def _missing_bytes(self) -> bytes:
        """Bytes that the vocabulary has no token for.

        In a byte-level one those that its training text never held, in one of sentencepiece all if it was made without
        byte fallback.
        """
        if self._kind == BYTE_LEVEL:
            letters = list(byte_letters())
        elif self._kind == SENTENCEPIECE:
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
        if self._kind not in (SENTENCEPIECE, BYTE_LEVEL) or self._rules.merges_spaces:
            return sys.maxsize
        space = SPACE if self._kind == SENTENCEPIECE else " "
        longest = max(len(text.replace(space, " ").encode("utf-8", "surrogateescape")) for text in self._texts)
        return longest * (_MOST_COMPOSED if self._rules.unicode_forms else 1)


def _is_looked_for(tag: str, template: str) -> bool:
    """Whether a template looks for the tag in what the model wrote (``content.split('</think>')``).

    Such a tag is part of contents; ``<|tag|>`` is none in any case.
    """
    quoted = rf"(['\"]){re.escape(tag)}\1"
    asked = (quoted + r"\s+(?:not\s+)?in\b", r"\.\w+\(\s*" + quoted)
    return not _PIPED_TAG.fullmatch(tag) and any(re.search(pattern, template) for pattern in asked)
