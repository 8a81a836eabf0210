"""The tokenizer and the chat template that an adapter was trained with: the merged model talks by them.

Trainers save them beside the adapter, and transformers' AutoTokenizer reads them there. Files that are not there say
nothing: what they would say stays the base's.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.checkpoint import TEMPLATE_NOTE, Checkpoint, text_config
from converters.facts import END_TOKENS
from converters.folder_files import end_ids
from converters.metadata.vocabulary import TokenType, Vocabulary, to_gguf
from converters.tokenizers.reader import read_folder
from converters.tokenizers.special_tokens import KINDS, token_text, with_roles
from converters.tokenizers.structure import SETTINGS, SPECIAL_MAP, read_checked
from converters.tokenizers.template_files import chat_templates
from converters.transforms.lora.base import with_settings
from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import Value, u32

_TOKENIZER_NOTE = "adapter's tokenizer"
_SIZE_NOTE = "vocabulary"
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def with_vocabulary(checkpoint: Checkpoint, folder: Path, base_rows: int) -> Checkpoint:
    """``checkpoint``, whose embedding had ``base_rows``, and tokenizer and template of the adapter in ``folder``.

    CheckpointError for files that can't be read, and for a tokenizer with more tokens than the embedding has rows.
    """
    before = checkpoint.vocabulary
    brings_tokens = any((folder / name).is_file() for name in _VOCABULARIES)
    after = _own(checkpoint, folder) if brings_tokens else _adapted(checkpoint, folder)
    notes = {topic: text for topic, text in checkpoint.notes.items() if not brings_tokens or topic not in before.notes}
    notes |= {topic: f"{text} (in the adapter's folder)" for topic, text in after.notes.items() if brings_tokens}
    notes |= _notes(before, after, brings_tokens=brings_tokens)
    rows = text_config(checkpoint.config).get("vocab_size")
    if rows != base_rows:
        notes[_SIZE_NOTE] = f"the adapter's, of {rows:,} rows in place of {base_rows:,}"
        if not brings_tokens:
            notes[_SIZE_NOTE] += "; it brings no tokenizer, so the base's names their tokens"
    if after == before:
        return replace(checkpoint, notes=notes)
    if _end(before) != _end(after):
        notes[END_TOKENS.topic] = f"the adapter's {_end(after)[1]!r} beside the base's"
    checkpoint = _with_end(checkpoint, after)
    return replace(checkpoint, vocabulary=after, metadata=_with_tokens(checkpoint.metadata, after), notes=notes)


def _end(vocabulary: Vocabulary) -> tuple[int | None, str]:
    """EOS: its id and its text."""
    index = vocabulary.special.get("eos")
    return index, "" if index is None else vocabulary.tokens[index]


def _with_end(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Checkpoint:
    """Answers end with the base's tokens and with the adapter's; what is no token any more is none."""
    end, _ = _end(vocabulary)
    is_new = _end(vocabulary) != _end(checkpoint.vocabulary)

    def ends(given: Any) -> list[int]:
        known = given if isinstance(given, list) else [given]
        kept = [index for index in known if type(index) is int and 0 <= index < len(vocabulary.tokens)]
        return [*kept, end] if is_new and end is not None and end not in kept else kept

    generation = dict(checkpoint.generation)
    if is_new or "eos_token_id" in generation:
        generation["eos_token_id"] = ends(generation.get("eos_token_id") or end_ids(checkpoint.vocabulary))
    known = text_config(checkpoint.config).get("eos_token_id")
    settings = {} if known is None else {"eos_token_id": ends(known)}
    return replace(checkpoint, generation=generation, config=with_settings(checkpoint.config, **settings))


def _own(checkpoint: Checkpoint, folder: Path) -> Vocabulary:
    """The adapter's tokenizer, with the base's template if it has none."""
    try:
        vocabulary = read_folder(folder, text_config(checkpoint.config))
    except CheckpointError as error:
        remedy = f"{error.remedy}; or take the tokenizer's files out of the adapter's folder, to keep the base's"
        raise CheckpointError(error.message, remedy=remedy.removeprefix("; ")) from error
    templates = vocabulary.chat_templates or checkpoint.vocabulary.chat_templates
    return replace(vocabulary, chat_templates=templates)


def _adapted(checkpoint: Checkpoint, folder: Path) -> Vocabulary:
    """The base's tokens, as many as the embedding has rows, with what the adapter's settings say of them."""
    given = read_checked(folder / "tokenizer_config.json", SETTINGS)
    settings, _ = with_roles(given, read_checked(folder / "special_tokens_map.json", SPECIAL_MAP), {})
    vocabulary = _resized(checkpoint, folder)
    special = {**vocabulary.special, **_special(settings, vocabulary, folder)}
    flags = {kind: settings.get(f"add_{kind}_token") for kind in ("bos", "eos", "sep")}
    add = {**vocabulary.add, **{kind: flag for kind, flag in flags.items() if isinstance(flag, bool)}}
    templates, _ = chat_templates(folder, settings)
    return replace(vocabulary, special=special, add=add, chat_templates=templates or vocabulary.chat_templates)


def _special(settings: Mapping[str, Any], vocabulary: Vocabulary, folder: Path) -> dict[str, int]:
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    texts = {kind: token_text(settings.get(f"{kind}_token")) for kind in KINDS}
    for kind, text in texts.items():
        if text and text not in ids:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: {kind}_token is {text!r:.100}, no token of the base's vocabulary",
                remedy="put the adapter's tokenizer.json beside it",
            )
    return {kind: ids[text] for kind, text in texts.items() if text}


def _resized(checkpoint: Checkpoint, folder: Path) -> Vocabulary:
    """The base's vocabulary with as many tokens as the embedding has rows now."""
    vocabulary, rows = checkpoint.vocabulary, text_config(checkpoint.config).get("vocab_size")
    tokens = vocabulary.tokens
    if type(rows) is not int or rows == len(tokens):
        return vocabulary
    lost = [index for index in range(rows, len(tokens)) if vocabulary.types[index] != TokenType.UNUSED]
    if lost:
        raise CheckpointError(
            f"{folder}: the adapter's embedding has {rows:,} rows, the base's tokenizer {max(lost) + 1:,} tokens",
            remedy="put the tokenizer that the adapter was trained with into its folder",
        )
    more = range(len(tokens), rows)
    return replace(
        vocabulary,
        tokens=[*tokens[:rows], *(f"[PAD{index}]" for index in more)],
        types=[*vocabulary.types[:rows], *(int(TokenType.UNUSED) for _ in more)],
        scores=None if vocabulary.scores is None else [*vocabulary.scores[:rows], *(-10000.0 for _ in more)],
    )


def _notes(before: Vocabulary, after: Vocabulary, *, brings_tokens: bool) -> dict[str, str]:
    notes = {}
    if brings_tokens and list(after.tokens) != list(before.tokens):
        notes[_TOKENIZER_NOTE] = f"used, with {_used(after):,} tokens in place of the base's {_used(before):,}"
    elif dict(after.special) != dict(before.special):
        kinds = [kind for kind in after.special if after.special[kind] != before.special.get(kind)]
        told = ", ".join(f"{kind} {after.tokens[after.special[kind]]!r}" for kind in kinds)
        notes[_TOKENIZER_NOTE] = f"its special tokens are used: {told}" if told else "its special tokens are used"
    if dict(after.chat_templates) != dict(before.chat_templates):
        notes[TEMPLATE_NOTE] = "the adapter's own (--chat-template changes it)"
    return notes


def _used(vocabulary: Vocabulary) -> int:
    return sum(kind != TokenType.UNUSED for kind in vocabulary.types)


def _with_tokens(metadata: Mapping[str, Value], vocabulary: Vocabulary) -> Mapping[str, Value]:
    """A GGUF source's own metadata, which a GGUF output keeps, with the new vocabulary in place of the old one."""
    if not metadata:
        return metadata
    kept = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}
    sizes = {key: u32(len(vocabulary.tokens)) for key in kept if key.endswith(".vocab_size")}
    return kept | sizes | to_gguf(vocabulary)
