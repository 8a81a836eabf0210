"""The vocabulary of a folder: tokenizer.json through ``tokenizers``, or tokenizer.model through ``sentencepiece``.

Byte-level BPE (Llama 3 and 4, SmolLM2) and sentencepiece's (Llama 2), with the same rules as for GGUF files: see
:mod:`edge_llama.prompts.control_tokens`.
"""

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_llama.errors import ArtifactError, EngineError
from edge_llama.files.byte_letters import byte_letters
from edge_llama.files.text_rules import PLAIN, UNICODE_FORMS, SpacePrefix, TextRules, cut_words
from edge_llama.files.tokenizer_folder import TokenizerFiles
from edge_llama.prompts.control_tokens import (
    BYTE,
    BYTE_LEVEL,
    CONTROL,
    NORMAL,
    SENTENCEPIECE,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)

_MAX_BYTES = 1 << 28  # 200,000 words and their merges take 28 MB
_AGAIN = "copy the whole folder again, or convert again"
_TEXTS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A library's tokenizer: ``encode`` gives the ids of plain text, in which no control token is found."""

    kind: str
    texts: Sequence[str]
    types: Sequence[int]
    encode: Callable[[str], list[int]]
    begins: int | None
    """What it puts before a text."""
    rules: TextRules = PLAIN
    ends: Sequence[int] = ()
    """What it puts after one."""


class HFTokenizer(Vocabulary):
    """The vocabulary in a folder. A :class:`edge_llama.prompts.tokenizer.Tokenizer`; any thread may use it."""

    def __init__(self, files: TokenizerFiles) -> None:
        """Raises ArtifactError for a tokenizer that is damaged, of an unknown kind, or larger than the model's.

        EngineError if its library is not installed.
        """
        read = _from_json if files.tokenizer.suffix == ".json" else _from_sentencepiece
        loaded = read(files.tokenizer, files.n_vocab)
        super().__init__(loaded.kind, loaded.texts, loaded.types, loaded.rules)
        self.n_vocab = len(loaded.texts)
        self._ends = files.ends
        self._settings = files.settings
        self._encode = loaded.encode
        self.bos = self._wanted(loaded.begins) if files.begins is None else files.begins
        """The token that begins a raw prompt, or None where the model wants none."""
        self.frame = ([] if self.bos is None else [self.bos], loaded.ends)
        """The tokens that the model wants before and after a text that stands alone, to embed it."""

    def _wanted(self, begins: int | None) -> int | None:
        """As tokenizer_config.json says, else as the tokenizer itself does."""
        wanted = self._settings.content.get("add_bos_token")
        if not isinstance(wanted, bool):
            return begins
        text = self.special_texts.get("bos_token")
        return self._texts.index(text) if wanted and text in self._known else None

    @cached_property
    def special_texts(self) -> Mapping[str, str]:
        """``bos_token``, ``eos_token``, ... as chat templates name them; only those that tokenizer_config.json sets."""
        given = {name: self._settings.content.get(name) for name in _TEXTS}
        texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in given.items()}
        return {name: text for name, text in texts.items() if isinstance(text, str)}

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        return token in self._ends

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens and for ids without a word."""
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""

    @cached_property
    def _pieces(self) -> list[bytes]:
        return pieces(self._kind, self._texts, self._types)

    def _tokenize(self, text: str) -> list[int]:
        return self._encode(text)

    def _is_control_there(self, _token: int) -> bool:
        return False

    @property
    def _borders(self) -> Container[int]:
        return self._ends if self.bos is None else {self.bos, *self._ends}


_BYTES = {letter: bytes((byte,)) for byte, letter in enumerate(byte_letters())}


def pieces(vocabulary: str, texts: Sequence[str], types: Sequence[int]) -> list[bytes]:
    """The bytes that each token stands for, by its text and type in a ``vocabulary`` of one of the two kinds."""
    return [_piece(vocabulary, text, kind) for text, kind in zip(texts, types, strict=True)]


def _piece(vocabulary: str, text: str, kind: int) -> bytes:
    if kind in (CONTROL, UNKNOWN, UNUSED):
        return b""
    if kind == BYTE:
        return bytes((int(text[1:-1], 16),))
    if kind == USER_DEFINED:
        return text.encode()
    if vocabulary == SENTENCEPIECE:
        return text.replace(SPACE, " ").encode()
    return b"".join(_BYTES.get(letter) or letter.encode() for letter in text)


def _from_json(path: Path, n_vocab: int | None) -> _Loaded:
    tokenizer = _tokenizer(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a special token's text is plain text, too
    kind = _kind(path, tokenizer)
    texts, types = _words(path, tokenizer, n_vocab, is_sentencepiece=kind == SENTENCEPIECE)
    with_marks, plain = (tokenizer.encode("a", add_special_tokens=flag).ids for flag in (True, False))
    begins = with_marks[0] if with_marks[:1] != plain[:1] else None

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    ends = with_marks[len(plain) + (begins is not None) :]
    return _Loaded(kind, texts, types, encode, begins, _rules(tokenizer), ends)


def _rules(tokenizer: Any) -> TextRules:
    """What the library would do if it had a text and the control tokens in it at once: each run comes alone."""
    steps = list(_described(tokenizer.pre_tokenizer))
    first = any(step["type"] == "Metaspace" and step.get("prepend_scheme") == "first" for step in steps)
    normalizers = list(_described(tokenizer.normalizer))
    added = tokenizer.get_added_tokens_decoder()
    return TextRules(
        SpacePrefix.METASPACE_FIRST if first else None,
        tuple(step["type"] for step in normalizers if step["type"] in UNICODE_FORMS),
        merges_spaces=any(step.get("content") == "" for step in normalizers),
        lstrip=tuple(token for token, entry in added.items() if entry.lstrip),
        rstrip=tuple(token for token, entry in added.items() if entry.rstrip),
    )


def _tokenizer(path: Path) -> Any:
    """The library's tokenizer. Its own getters are asked later: to parse such a file in Python takes 100 MB."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - loads native code
    except (ImportError, OSError) as error:
        raise EngineError(f"tokenizers cannot be loaded: {error}", remedy="pip install tokenizers") from error
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise ArtifactError(f"{path}: has {size:,} bytes, expected at most {_MAX_BYTES:,}", remedy=_AGAIN)
    try:
        return Tokenizer.from_file(str(path))
    except BaseException as error:  # the library's panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise ArtifactError(f"{path}: tokenizers refuses it: {str(error)[:300]}", remedy=_AGAIN) from error


def _kind(path: Path, tokenizer: Any) -> str:
    """By what the tokenizer does with a text; ArtifactError for what is neither of the two."""
    model = type(tokenizer.model).__name__
    steps = {step for part in (tokenizer.pre_tokenizer, tokenizer.decoder) for step in _steps(part)}
    if model == "BPE" and "ByteLevel" in steps:
        return BYTE_LEVEL
    if model == "BPE" and (tokenizer.model.byte_fallback or "ByteFallback" in steps):
        return SENTENCEPIECE
    raise ArtifactError(
        f"{path}: a tokenizer of the kind {model} ({', '.join(sorted(steps)) or 'no steps'})",
        remedy="this version reads BPE, byte-level or with byte fallback",
    )


def _steps(part: Any) -> list[str]:
    """The types of a pre-tokenizer or decoder and of its parts."""
    return [str(step["type"]) for step in _described(part)]


def _described(part: Any) -> Iterator[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder and its parts, as tokenizer.json has them."""
    if part is None:
        return
    described: dict[str, Any] = json.loads(part.__getstate__())
    yield described
    for parts in ("normalizers", "pretokenizers", "decoders"):
        yield from described.get(parts, [])


def _words(path: Path, tokenizer: Any, n_vocab: int | None, *, is_sentencepiece: bool) -> tuple[list[str], list[int]]:
    """Text and type of every id below ``n_vocab``; ArtifactError for ids that the model has not."""
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)} if is_sentencepiece else set()
    words = tokenizer.get_vocab(with_added_tokens=False)
    added = tokenizer.get_added_tokens_decoder()
    most = max((*words.values(), *added), default=0)
    n_vocab = most + 1 if n_vocab is None else n_vocab
    if most >= n_vocab:
        raise ArtifactError(f"{path}: has a token {most:,}, the model knows 0 to {n_vocab - 1:,}", remedy=_AGAIN)
    texts, types = [""] * n_vocab, [UNUSED] * n_vocab
    for text, token in words.items():
        texts[token], types[token] = text, BYTE if text in bytes_ else NORMAL
    for text in (text for step in _described(tokenizer.pre_tokenizer) for text in cut_words(step)):
        if (cut := words.get(text)) is not None:
            texts[cut], types[cut] = text.replace(SPACE, " "), USER_DEFINED
    for token, entry in added.items():
        special = UNKNOWN if entry.content == tokenizer.model.unk_token else CONTROL
        texts[token], types[token] = entry.content, special if entry.special else USER_DEFINED
    return texts, types


def _from_sentencepiece(path: Path, n_vocab: int | None) -> _Loaded:
    try:
        from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - loads native code
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{path}: sentencepiece cannot be loaded: {error}", remedy="pip install sentencepiece"
        ) from error
    try:
        pieces: Any = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"{path}: sentencepiece refuses it: {str(error)[:300]}", remedy=_AGAIN) from error
    n_vocab = len(pieces) if n_vocab is None else n_vocab
    if len(pieces) > n_vocab:
        raise ArtifactError(f"{path}: has {len(pieces):,} tokens, the model {n_vocab:,}", remedy=_AGAIN)
    kinds = (
        (CONTROL, pieces.is_control),
        (UNKNOWN, pieces.is_unknown),
        (BYTE, pieces.is_byte),
        (UNUSED, pieces.is_unused),
    )
    types = [next((kind for kind, holds in kinds if holds(token)), NORMAL) for token in range(len(pieces))]
    texts = [pieces.id_to_piece(token) for token in range(len(pieces))]
    gap = n_vocab - len(pieces)
    begins = pieces.bos_id() if pieces.bos_id() >= 0 else None
    return _Loaded(
        SENTENCEPIECE, texts + [""] * gap, types + [UNUSED] * gap, lambda text: list(pieces.encode(text)), begins
    )
