"""The last step of a plan: what is written encodes text as the source does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.layout import Layout
from converters.tokenizers.proof import TURNS, Encoded, GGUFEncoder, chat_text, compare, texts_for
from converters.tokenizers.source_encoders import Encoder, JsonEncoder, source_encoder
from edge_llama.errors import ArtifactError, CheckpointError
from edge_llama.files import text_rules
from edge_llama.files.gguf import encode_header

TOPIC = "tokenizer"
"""The topic of the report's note."""
_VOCABULARY = b"tokenizer.ggml.tokens"
_OF_VOCABULARY = ("general.architecture", "general.name", "tokenizer.", text_rules.PREFIX)
_TENSOR_COUNT, _TYPE_BYTES, _SPLIT_COUNT = 8, 4, b"split.count"  # where GGUF has them; the key of an uint16


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Two tokenizers by name: one at work, and what the other made of the texts, or why it wasn't asked."""

    encoder: Encoder
    encoded: Encoded | str
    names: tuple[str, str]


def prove(checkpoint: Checkpoint, layout: Layout, encode_gguf: GGUFEncoder) -> str:
    """What was proved of the text tower's tokenizer, for the report; empty where no tokenizer is written.

    CheckpointError with the first text of which source and output make other tokens.
    """
    header = next((part.header for part in layout.parts if _VOCABULARY in part.header), None)
    json = next((content for name, content in layout.files.items() if Path(name).name == "tokenizer.json"), None)
    vocabulary = checkpoint.vocabulary
    source = source_encoder(vocabulary) if header or json else None
    name, texts = str(vocabulary.origin or checkpoint.path), texts_for(vocabulary)
    if json is not None:
        return _proved(_of_json(json, source, checkpoint, name, texts, encode_gguf), texts, vocabulary.unknown)
    if header is None:
        return ""
    return prove_gguf(checkpoint, header, encode_gguf)


def prove_gguf(checkpoint: Checkpoint, header: bytes, encode_gguf: GGUFEncoder) -> str:
    """The same of a GGUF file's ``header``. CheckpointError likewise."""
    vocabulary = checkpoint.vocabulary
    source = source_encoder(vocabulary)
    if source is None:
        return "the source's own, kept as it is"
    name, texts = str(vocabulary.origin or checkpoint.path), texts_for(vocabulary)
    encoded = _by_engine(encode_gguf, _without_tensors(header), texts, name)
    compared = _Comparison(source, encoded, (name, "the GGUF vocabulary that is written"))
    own = text_rules.to_gguf(vocabulary.rules)
    note = _proved(compared, texts, vocabulary.unknown)
    return f"{note}; in edge-llama alone, which reads {', '.join(own)}" if own else note


def _of_json(
    json: bytes,
    source: Encoder | None,
    checkpoint: Checkpoint,
    name: str,
    texts: Sequence[str],
    encode_gguf: GGUFEncoder,
) -> _Comparison:
    """The tokenizer.json that is written beside the source; a GGUF source's vocabulary needs an engine."""
    written, names = JsonEncoder(json, name), (name, "the tokenizer.json that is written")
    if source is None:
        return _Comparison(written, _by_engine(encode_gguf, _of_source(checkpoint), texts, name), names[::-1])
    chat = chat_text(checkpoint.vocabulary)
    return _Comparison(source, Encoded([written.plain(text) for text in texts], (chat, written.chat(chat))), names)


def _proved(compared: _Comparison, texts: Sequence[str], unknown: int | None) -> str:
    """The note; CheckpointError if the two differ."""
    encoded = compared.encoded
    if isinstance(encoded, str):
        return f"not checked: {encoded}"
    compare(compared.encoder, encoded, texts, compared.names, unknown)
    return f"{len(texts)} texts{' and a chat' if encoded.chat else ''} become the source's own tokens"


def _by_engine(encode_gguf: GGUFEncoder, gguf: bytes, texts: Sequence[str], name: str) -> Encoded | str:
    """What an engine makes of texts and a chat by the vocabulary in ``gguf``, or why none was asked."""
    try:
        found = encode_gguf(gguf, texts, TURNS)
    except ArtifactError as error:
        raise CheckpointError(f"{name}: {error.message}", remedy=error.remedy) from error
    return found if isinstance(found, str) else Encoded(*found)


def _without_tensors(header: bytes) -> bytes:
    """A GGUF file of this header's metadata: of a model in several files, too, this one alone."""
    alone = bytearray(header)
    alone[_TENSOR_COUNT : _TENSOR_COUNT + 8] = bytes(8)
    key = len(_SPLIT_COUNT).to_bytes(8, "little") + _SPLIT_COUNT
    if (at := header.rfind(key)) >= 0:
        at += len(key) + _TYPE_BYTES
        alone[at : at + 2] = (1).to_bytes(2, "little")
    return bytes(alone)


def _of_source(checkpoint: Checkpoint) -> bytes:
    """The same of a GGUF source."""
    fields = {key: value for key, value in checkpoint.metadata.items() if key.startswith(_OF_VOCABULARY)}
    return encode_header(fields, [])[0]
