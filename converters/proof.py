"""The last step of a plan: what is written encodes text as the source does."""

from collections.abc import Sequence
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


def prove(checkpoint: Checkpoint, layout: Layout, encode_gguf: GGUFEncoder) -> str:
    """What was proved of the text tower's tokenizer, for the report; empty where no tokenizer is written.

    CheckpointError with the first text of which source and output make other tokens.
    """
    header = next((part.header for part in layout.parts if _VOCABULARY in part.header), None)
    json = next((content for name, content in layout.files.items() if Path(name).name == "tokenizer.json"), None)
    if header is None and json is None:
        return ""
    vocabulary = checkpoint.vocabulary
    name, source, texts = str(vocabulary.origin or checkpoint.path), source_encoder(vocabulary), texts_for(vocabulary)
    why_not = ""
    if json is None and header is not None:
        if source is None:
            return "the source's own, kept as it is"
        names = (name, "the GGUF vocabulary that is written")
        why_not = _by_engine(encode_gguf, source, _without_tensors(header), texts, names, vocabulary.unknown)
    elif json is not None:
        written, names = JsonEncoder(json, name), (name, "the tokenizer.json that is written")
        if source is None:
            gguf = _of_source(checkpoint)
            why_not = _by_engine(encode_gguf, written, gguf, texts, names[::-1], vocabulary.unknown)
        else:
            chat = chat_text(vocabulary)
            encoded = Encoded([written.plain(text) for text in texts], (chat, written.chat(chat)))
            compare(source, encoded, texts, names, vocabulary.unknown)
    note = f"not checked: {why_not}" if why_not else f"{len(texts)} texts and a chat become the source's own tokens"
    own = text_rules.to_gguf(vocabulary.rules) if json is None else {}
    return f"{note}; in edge-llama alone, which reads {', '.join(own)}" if own else note


def _by_engine(
    encode_gguf: GGUFEncoder,
    encoder: Encoder,
    gguf: bytes,
    texts: Sequence[str],
    names: tuple[str, str],
    unknown: int | None,
) -> str:
    """Compare; why there is no engine, or nothing."""
    try:
        found = encode_gguf(gguf, texts, TURNS)
    except ArtifactError as error:
        raise CheckpointError(f"{names[0]}: {error.message}", remedy=error.remedy) from error
    if isinstance(found, str):
        return found
    compare(encoder, Encoded(*found), texts, names, unknown)
    return ""


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
