"""A vocabulary as a sentencepiece ``tokenizer.model``: its scores survive there, and nowhere else in a folder.

The file is a protocol buffer, ``ModelProto`` of sentencepiece's ``src/sentencepiece_model.proto``: field numbers are
from there. Only what a reader needs is written: pieces, the kind of model, how text is normalized.
"""

from converters.metadata.vocabulary import TokenType, Vocabulary
from edge_llama.files import protobuf

_SPACE = "\u2581"
_BPE = 2  # TrainerSpec.ModelType


def encode(vocabulary: Vocabulary) -> bytes:
    """The model's bytes. Pieces keep ids, texts, scores (float32) and types, whose numbers are GGUF's."""
    scores = vocabulary.scores or [0.0] * len(vocabulary.tokens)
    pieces = zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
    has_bytes = sum(kind == TokenType.BYTE for kind in vocabulary.types) == 256
    names = {45: "unk", 46: "bos", 47: "eos", 48: "pad"}
    special: dict[int, int | bytes | float] = {
        number: _text(vocabulary.tokens[vocabulary.special[kind]])
        for number, kind in names.items()
        if kind in vocabulary.special
    }
    trainer: dict[int, int | bytes | float] = {
        3: _BPE,
        4: len(vocabulary.tokens),
        24: False,
        26: True,
        35: has_bytes,
    } | special
    normalizer: dict[int, int | bytes | float] = {
        1: b"identity",
        3: vocabulary.add_space_prefix is not False,
        4: False,
        5: True,
    }
    messages = [(1, _piece(*piece)) for piece in pieces]
    messages += [(2, protobuf.encode(trainer)), (3, protobuf.encode(normalizer))]
    return b"".join(protobuf.encode_field(number, message) for number, message in messages)


def _piece(text: str, score: float, kind: int) -> bytes:
    if kind == TokenType.USER_DEFINED:
        text = text.replace(" ", _SPACE)
    return protobuf.encode({1: _text(text), 2: float(score), 3: int(kind)})


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
