"""A sentencepiece ``tokenizer.model``: what it says beyond its pieces, and a vocabulary written as one.

The file is a protocol buffer, ``ModelProto`` of sentencepiece's ``src/sentencepiece_model.proto``: field numbers and
defaults are from there. Only what a reader needs is written: pieces, the kind of model, how text is normalized. A
vocabulary's scores survive there, and nowhere else in a folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.metadata.vocabulary import TokenType, Vocabulary
from edge_llama.errors import CheckpointError
from edge_llama.files import protobuf

_SPACE = "\u2581"
_BPE = 2
_KINDS = {1: "Unigram", _BPE: "BPE", 3: "word", 4: "char"}  # TrainerSpec.ModelType
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_TYPE = 3  # of SentencePiece; its numbers are GGUF's
_KIND, _SUFFIX = 3, 24  # of TrainerSpec: model_type, treat_whitespace_as_suffix
_NAME, _CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPE = range(1, 6)  # of NormalizerSpec


@dataclass(frozen=True, slots=True)
class Spec:
    """How a model treats text: a space before all of it, runs of spaces made one."""

    has_prefix: bool
    merges_spaces: bool


def read_spec(content: bytes, path: Path) -> Spec:
    """What the sound model ``content`` of ``path`` says beside its pieces.

    CheckpointError names what no vocabulary written here can say: another kind than BPE, a map of characters.
    """
    trainer, normalizer = _message(content, _TRAINER), _message(content, _NORMALIZER)
    kind = trainer.get(_KIND, 1)
    if kind != _BPE:
        raise CheckpointError(
            f"{path}: a sentencepiece model of the kind {_KINDS.get(int(kind), kind)} (model_type), expected BPE: "
            "GGUF's 'llama' vocabulary and tokenizer.json's merges would give other tokens",
            remedy="there is no equal vocabulary: train the model with a BPE tokenizer",
        )
    if normalizer.get(_CHARSMAP):
        name = bytes(normalizer.get(_NAME, b"")).decode("utf-8", "replace")
        raise CheckpointError(
            f"{path}: normalizes text by {name[:100]!r} (normalizer_spec.precompiled_charsmap), which no vocabulary "
            "written here can say",
            remedy="supported: identity",
        )
    for number, name, expected in (
        (_ESCAPE, "normalizer_spec.escape_whitespaces", True),
        (_SUFFIX, "trainer_spec.treat_whitespace_as_suffix", False),
    ):
        given = bool((normalizer if number == _ESCAPE else trainer).get(number, expected))
        if given is not expected:
            raise CheckpointError(f"{path}: {name} is {given}", remedy=f"supported: {expected}")
    return Spec(bool(normalizer.get(_DUMMY_PREFIX, True)), bool(normalizer.get(_EXTRA_SPACES, True)))


def user_defined(content: bytes) -> frozenset[int]:
    """The ids of the pieces that the user defined: text always forms them. sentencepiece's module can't tell."""
    mark = bytes((_TYPE << 3, TokenType.USER_DEFINED))
    messages = (value for field, value in protobuf.fields(memoryview(content)) if field == _PIECE)
    return frozenset(
        index
        for index, piece in enumerate(messages)
        if isinstance(piece, memoryview)
        and mark in bytes(piece)
        and dict(protobuf.fields(piece)).get(_TYPE) == TokenType.USER_DEFINED
    )


def without_prefix(content: bytes) -> bytes:
    """The model, putting no space before text: what a protocol buffer says last of a field counts."""
    return content + protobuf.encode_field(_NORMALIZER, protobuf.encode({_DUMMY_PREFIX: False}))


def _message(content: bytes, number: int) -> Mapping[int, protobuf.Field]:
    """The fields of a message within the model; of one that stands there in parts, all of them."""
    parts = [value for field, value in protobuf.fields(memoryview(content)) if field == number]
    return {key: value for part in parts if isinstance(part, memoryview) for key, value in protobuf.fields(part)}


def encode(vocabulary: Vocabulary) -> bytes:
    """The model's bytes. Pieces keep ids, texts, scores (float32) and types, whose numbers are GGUF's."""
    scores = vocabulary.scores or [0.0] * len(vocabulary.tokens)
    pieces = zip(vocabulary.tokens, scores, _types(vocabulary), strict=True)
    has_bytes = sum(kind == TokenType.BYTE for kind in vocabulary.types) == 256
    names = {45: "unk", 46: "bos", 47: "eos", 48: "pad"}
    special: dict[int, int | bytes | float] = {
        number: _text(vocabulary.tokens[vocabulary.special[kind]])
        for number, kind in names.items()
        if kind in vocabulary.special
    }
    trainer: dict[int, int | bytes | float] = {
        _KIND: _BPE,
        4: len(vocabulary.tokens),
        _SUFFIX: False,
        26: True,
        35: has_bytes,
    } | special
    normalizer: dict[int, int | bytes | float] = {
        _NAME: b"identity",
        _DUMMY_PREFIX: vocabulary.has_space_prefix,
        _EXTRA_SPACES: vocabulary.rules.merges_spaces,
        _ESCAPE: True,
    }
    messages = [(1, _piece(*piece)) for piece in pieces]
    messages += [(2, protobuf.encode(trainer)), (3, protobuf.encode(normalizer))]
    return b"".join(protobuf.encode_field(number, message) for number, message in messages)


def _types(vocabulary: Vocabulary) -> list[int]:
    """The types of pieces: sentencepiece takes one as unknown alone."""
    unknown, of_others = vocabulary.unknown, {int(TokenType.UNKNOWN): int(TokenType.CONTROL)}
    return [kind if index == unknown else of_others.get(kind, kind) for index, kind in enumerate(vocabulary.types)]


def _piece(text: str, score: float, kind: int) -> bytes:
    if kind == TokenType.USER_DEFINED:
        text = text.replace(" ", _SPACE)
    return protobuf.encode({1: _text(text), 2: float(score), 3: int(kind)})


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
