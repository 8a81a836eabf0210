"""A source's own tokenizer at work, by other code than what runs the vocabulary that is written from it.

tokenizer.json through ``tokenizers``, a sentencepiece tokenizer.model through ``sentencepiece``, tiktoken's ranks by
plain merging. ``plain`` is text in which no special token is found, ``chat`` text with special tokens as transformers
gives it to the tokenizer.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from converters.metadata.vocabulary import TokenType, Vocabulary
from converters.tokenizers.pre_tokenizers import BY_NAME
from converters.tokenizers.sentencepiece_model import without_prefix
from converters.tokenizers.tiktoken_ranks import is_ranks
from converters.tokenizers.vocab_and_merges import VOCAB, tokenizer_of_pair
from edge_llama.errors import CheckpointError
from edge_llama.files.text_rules import SpacePrefix
from edge_llama.host.regular_files import content_of


class Encoder(Protocol):
    """A tokenizer at work."""

    def plain(self, text: str) -> list[int]:
        """The ids of plain text."""

    def chat(self, text: str) -> list[int]:
        """The ids of text with special tokens."""


def source_encoder(vocabulary: Vocabulary) -> Encoder | None:
    """The tokenizer from which ``vocabulary`` was read; None if that is a GGUF file, which only an engine reads."""
    path = vocabulary.origin
    if path is None or path.suffix not in (".json", ".model"):
        return None
    try:
        content = content_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if path.name == VOCAB:
        content = json.dumps(tokenizer_of_pair(path.parent, vocabulary.pre, vocabulary.rules.unicode_forms)).encode()
    if path.suffix == ".json":
        encoder = JsonEncoder(_raw_added_tokens(content), path)
        encoder.add(vocabulary)
        return encoder
    return RanksEncoder(content, vocabulary) if is_ranks(content) else PiecesEncoder(content, vocabulary)


def _raw_added_tokens(content: bytes) -> bytes:
    """A tokenizer.json whose added tokens are looked for in text as it is given, as transformers 5 does for Llama.

    Older files have them normalized and a normalizer that puts a space before text: then tokenizers finds ``</s>`` only
    behind a space.
    """
    if b'"Prepend"' not in content or not re.search(rb'"normalized":\s*true', content):
        return content
    tokenizer = json.loads(content)
    added = [{**entry, "normalized": False} for entry in tokenizer["added_tokens"]]
    return json.dumps({**tokenizer, "added_tokens": added}).encode()


class JsonEncoder:
    """A tokenizer.json."""

    def __init__(self, content: bytes, path: Path | str) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 - native code, needed for the proof alone

        try:
            self._tokenizer: Any = Tokenizer.from_buffer(content)
        except BaseException as error:  # the library's panics are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise CheckpointError(
                f"{path}: tokenizers refuses it: {str(error)[:300]}", remedy="download it again"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def plain(self, text: str) -> list[int]:
        """See :class:`Encoder`."""
        return self._encode(text, special_is_plain=True)

    def chat(self, text: str) -> list[int]:
        """See :class:`Encoder`."""
        return self._encode(text, special_is_plain=False)

    def add(self, vocabulary: Vocabulary) -> None:
        """Add, as transformers does, the tokens that other files list, and make special those that have a role."""
        from tokenizers import AddedToken  # noqa: PLC0415

        known, rules = self._tokenizer.get_added_tokens_decoder(), vocabulary.rules
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
            if kind not in (TokenType.CONTROL, TokenType.USER_DEFINED):
                continue
            is_special, there = kind == TokenType.CONTROL, known.get(index)
            # Words of the model that the user defined are found whole by other steps.
            is_word = not is_special and self._tokenizer.token_to_id(text) is not None
            if there.special != is_special if there else not is_word:
                flags = {"lstrip": index in rules.lstrip, "rstrip": index in rules.rstrip, "normalized": False}
                self._tokenizer.add_tokens([AddedToken(text, special=is_special, **flags)])

    def _encode(self, text: str, *, special_is_plain: bool) -> list[int]:
        self._tokenizer.encode_special_tokens = special_is_plain
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class PiecesEncoder:
    """A sentencepiece model and the tokens that were added to it, between which transformers gives it text."""

    def __init__(self, content: bytes, vocabulary: Vocabulary) -> None:
        from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - whoever read the vocabulary has it

        self._inner: Any = SentencePieceProcessor(model_proto=without_prefix(content))
        self._whole: Any = SentencePieceProcessor(model_proto=content) if vocabulary.has_space_prefix else self._inner
        self._rules = vocabulary.rules
        template = vocabulary.chat_templates.get("default", "")
        own = self._rules.space_prefix is SpacePrefix.EACH  # the model's own finding of what the user defined

        def found(text: str, kind: int, *, in_chat: bool) -> bool:
            if kind == TokenType.USER_DEFINED:
                return not own or (in_chat and text in template)
            return in_chat and kind == TokenType.CONTROL

        self._found = _Found(vocabulary, lambda text, kind: found(text, kind, in_chat=False))
        self._special = _Found(vocabulary, lambda text, kind: found(text, kind, in_chat=True))

    def plain(self, text: str) -> list[int]:
        """See :class:`Encoder`."""
        return self._between(self._found.parts(text))

    def chat(self, text: str) -> list[int]:
        """See :class:`Encoder`."""
        return self._between(self._special.parts(text))

    def _between(self, parts: Iterable[str | int]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._text(part, is_first=not ids)
        return ids

    def _text(self, text: str, *, is_first: bool) -> list[int]:
        prefix = self._rules.space_prefix
        has_none = prefix not in (None, SpacePrefix.EACH) and text.startswith((" ", "\u2581"))
        has_none |= prefix is SpacePrefix.METASPACE_FIRST and not is_first
        return list((self._inner if has_none else self._whole).encode(text))


class RanksEncoder:
    """tiktoken's ranks: words by the family's regular expression, merged by the lowest rank."""

    def __init__(self, content: bytes, vocabulary: Vocabulary) -> None:
        from tokenizers import Regex, pre_tokenizers  # noqa: PLC0415 - native code, needed for the proof alone

        lines = (line.split() for line in content.splitlines() if line.strip())
        self._ranks = {base64.b64decode(text): int(rank) for text, rank in lines}
        regex = str(BY_NAME[vocabulary.pre].steps[0]["pattern"]["Regex"])
        self._words: Any = pre_tokenizers.Split(Regex(regex), "isolated")
        self._special = _Found(vocabulary, lambda _, kind: kind == TokenType.CONTROL)

    def plain(self, text: str) -> list[int]:
        """See :class:`Encoder`."""
        return [token for word, _ in self._words.pre_tokenize_str(text) for token in self._merged(word.encode())]

    def chat(self, text: str) -> list[int]:
        """See :class:`Encoder`."""
        parts = self._special.parts(text)
        return [token for part in parts for token in ([part] if isinstance(part, int) else self.plain(part))]

    def _merged(self, word: bytes) -> list[int]:
        if word in self._ranks:
            return [self._ranks[word]]
        parts = [word[at : at + 1] for at in range(len(word))]
        last = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(left + right, last) for left, right in pairwise(parts)]
            if (best := min(ranks)) == last:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self._ranks[part] for part in parts]


class _Found:
    """Tokens that are found in a text before its words, with what they do to the text beside them."""

    def __init__(self, vocabulary: Vocabulary, is_found: Callable[[str, int], bool]) -> None:
        tokens = zip(vocabulary.tokens, vocabulary.types, strict=True)
        self._ids = {text: index for index, (text, kind) in enumerate(tokens) if text and is_found(text, kind)}
        texts = "|".join(map(re.escape, sorted(self._ids, key=len, reverse=True)))
        self._pattern = re.compile(f"({texts or '(?!)'})")
        self._rules = vocabulary.rules

    def parts(self, text: str) -> list[str | int]:
        """Texts and ids in order; no text is empty."""
        found = self._pattern.split(text)
        parts: list[str | int] = [self._ids[part] if at % 2 else part for at, part in enumerate(found)]
        for at in range(0, len(found), 2):
            word = found[at]
            word = word.lstrip() if at and parts[at - 1] in self._rules.rstrip else word
            parts[at] = word.rstrip() if at + 1 < len(parts) and parts[at + 1] in self._rules.lstrip else word
        return [part for part in parts if part != ""]
