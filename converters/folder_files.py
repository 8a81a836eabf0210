"""The small files of a folder that Hugging Face's libraries read."""

import json
from typing import Any

from converters.checkpoint import Checkpoint
from converters.metadata.vocabulary import TokenType, Vocabulary
from edge_llama.errors import CheckpointError

_END_TEXTS = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"}


def encoded(content: Any, name: str, checkpoint: Checkpoint) -> bytes:
    """The bytes of the JSON file ``name``; CheckpointError for what it can't hold."""
    if isinstance(content, bytes):
        return content
    try:
        # Indented, a vocabulary of megabytes takes a third of a second to write.
        return json.dumps(content, indent=None if name == "tokenizer.json" else 2, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        damaged = error.object[error.start : error.end]
        raise CheckpointError(
            f"{checkpoint.path}: {name} holds {damaged!r}, which is not valid Unicode", remedy="download it again"
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{checkpoint.path}: {name} is nested too deeply", remedy="download it again") from error


def generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """generation_config.json: the source's; a GGUF source's sampling settings are for sampling."""
    ids: dict[str, Any] = dict(special_ids(checkpoint.vocabulary))
    if "eos_token_id" in ids:
        ends = end_ids(checkpoint.vocabulary)
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    samples = {"do_sample": True} if checkpoint.metadata and checkpoint.generation else {}
    return {**ids, **samples, **checkpoint.generation}


def special_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """``bos_token_id`` and others that the vocabulary has."""
    kinds = ("bos", "eos", "pad")
    return {f"{kind}_token_id": vocabulary.special[kind] for kind in kinds if kind in vocabulary.special}


def end_ids(vocabulary: Vocabulary) -> list[int]:
    """Tokens that end an answer: EOS first, then those that llama.cpp ends at too."""
    named = [vocabulary.special[kind] for kind in ("eos", "eot", "eom") if kind in vocabulary.special]
    texts = [
        index
        for index, text in enumerate(vocabulary.tokens)
        if text in _END_TEXTS and vocabulary.types[index] == TokenType.CONTROL
    ]
    return list(dict.fromkeys(named + texts))
