"""A Vocabulary to the files of a Hugging Face folder: tokenizer.json, tokenizer_config.json, tokenizer.model.

The way back from :mod:`converters.tokenizers.reader`: read again, they give the same Vocabulary.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converters.metadata.vocabulary import TokenType, Vocabulary
from converters.tokenizers import sentencepiece_model
from converters.tokenizers.pre_tokenizers import BY_NAME, BYTE_LEVEL
from converters.tokenizers.text_steps import DOUBLE, ESCAPE, MERGE_SPACES, PREPEND, SPACE
from edge_llama.errors import CheckpointError
from edge_llama.files.text_rules import SpacePrefix, cut_step

_KINDS = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


def write_files(vocabulary: Vocabulary, where: Path) -> dict[str, Any]:
    """The files by name, for ``tokenizers``, transformers and sentencepiece: JSON values, and bytes.

    Byte-level BPE with a known splitting rule, and sentencepiece with scores; CheckpointError for others, for tokens
    that are no text and for tokens that appear twice.
    """
    _check_tokens(vocabulary, where)
    if vocabulary.model == "llama" and vocabulary.scores is not None:
        model = sentencepiece_model.encode(vocabulary)
        files = {"tokenizer.json": _sentencepiece_json(vocabulary), "tokenizer.model": model}
    elif vocabulary.model == "gpt2" and vocabulary.pre in BY_NAME:
        files = {"tokenizer.json": _byte_level_json(vocabulary)}
    else:
        raise CheckpointError(
            f"{where}: a tokenizer.json can't be written for vocabulary {vocabulary.model!r}, {vocabulary.pre!r}",
            remedy=f"supported: llama (sentencepiece) with scores, gpt2 with {', '.join(BY_NAME)}",
        )
    return files | {"tokenizer_config.json": _settings(vocabulary)}


def _check_tokens(vocabulary: Vocabulary, where: Path) -> None:
    seen: dict[str, int] = {}
    for index, text in _used(vocabulary):
        first = seen.setdefault(text, index)
        if first != index:
            raise CheckpointError(
                f"{where}: tokens {first} and {index} are both {text!r}: no tokenizer.json holds that",
                remedy="convert to GGUF, or start from the original checkpoint",
            )
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise CheckpointError(
                f"{where}: token {index} is {text!r}, which is not valid UTF-8",
                remedy="convert to GGUF, or start from the original checkpoint",
            )


def _used(vocabulary: Vocabulary) -> Iterator[tuple[int, str]]:
    for index, text in enumerate(vocabulary.tokens):
        if vocabulary.types[index] != TokenType.UNUSED:
            yield index, text


def _settings(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer_config.json."""
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if vocabulary.add_space_prefix is not None:
        settings["add_prefix_space"] = vocabulary.add_space_prefix
    settings |= {f"{kind}_token": vocabulary.tokens[index] for kind, index in vocabulary.special.items()}
    settings |= {f"add_{kind}_token": flag for kind, flag in vocabulary.add.items()}
    if vocabulary.model == "llama":  # tokenizer.model doesn't tell them from plain tokens
        added = {entry["id"]: entry for entry in _added_tokens(vocabulary) if not entry["special"]}
        settings["added_tokens_decoder"] = {
            str(index): {key: value for key, value in entry.items() if key != "id"} for index, entry in added.items()
        }
    templates = dict(vocabulary.chat_templates)
    if len(templates) > 1:
        settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    elif "default" in templates:
        settings["chat_template"] = templates["default"]
    return settings


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Tokens that are found in a text before anything else; special ones only where a caller allows it."""
    left, right = set(vocabulary.rules.lstrip), set(vocabulary.rules.rstrip)
    cut = _cut(vocabulary)
    return [
        {
            "id": index,
            "content": text,
            "single_word": False,
            "lstrip": index in left,
            "rstrip": index in right,
            "normalized": False,
            "special": vocabulary.types[index] != TokenType.USER_DEFINED,
        }
        for index, text in _used(vocabulary)
        if vocabulary.types[index] in _KINDS and index not in cut
    ]


def _byte_level_json(vocabulary: Vocabulary) -> dict[str, Any]:
    byte_level = {**BYTE_LEVEL, "use_regex": True}
    known, template = BY_NAME[vocabulary.pre], _template(vocabulary)
    return _tokenizer_json(
        vocabulary,
        normalizer=_sequence([{"type": form} for form in vocabulary.rules.unicode_forms], "normalizers"),
        pre_tokenizer=known.as_json,
        post_processor={"type": "Sequence", "processors": [byte_level, template]} if template else byte_level,
        decoder=byte_level,
        model={
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": known.ignore_merges,
            "vocab": {text: index for index, text in _used(vocabulary)},
            "merges": [merge.split(" ") for merge in vocabulary.merges or []],
        },
    )


def _sentencepiece_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """As transformers derives it from a tokenizer.model."""
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if vocabulary.has_space_prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    unknown = vocabulary.unknown
    cut = _cut(vocabulary)
    normalizers, pre_tokenizers = _spaces(vocabulary, list(cut.values()))
    return _tokenizer_json(
        vocabulary,
        normalizer=_sequence(normalizers, "normalizers"),
        pre_tokenizer=pre_tokenizers[0] if len(pre_tokenizers) == 1 else _sequence(pre_tokenizers, "pretokenizers"),
        post_processor=_template(vocabulary),
        decoder={"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        model={
            "unk_token": None if unknown is None else vocabulary.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": bool(cut),
            "vocab": {cut.get(index, text): index for index, text in _used(vocabulary)},
            "merges": _merges_by_score(vocabulary),
        },
    )


def _cut(vocabulary: Vocabulary) -> dict[int, str]:
    """Tokens, by id, that are cut out of text by a step instead of being added: text after them gets no space."""
    if vocabulary.rules.space_prefix is not SpacePrefix.EACH:
        return {}
    tokens = ((index, text.replace(" ", SPACE)) for index, text in _used(vocabulary))
    return {index: text for index, text in tokens if vocabulary.types[index] == TokenType.USER_DEFINED}


def _spaces(vocabulary: Vocabulary, cut: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is done with spaces: steps of the normalizer, and of the pre-tokenizer."""
    rules = vocabulary.rules
    steps = [{"type": form} for form in rules.unicode_forms] + (list(MERGE_SPACES) if rules.merges_spaces else [])
    if rules.space_prefix is None:
        return [*steps, *([PREPEND] if vocabulary.has_space_prefix else []), ESCAPE], []
    scheme = "first" if rules.space_prefix is SpacePrefix.METASPACE_FIRST else "always"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    if rules.space_prefix is SpacePrefix.EACH:
        return [*steps, ESCAPE, DOUBLE], [metaspace, *([cut_step(cut)] if cut else [])]
    return steps, [metaspace]


def _sequence(steps: list[dict[str, Any]], inside: str) -> dict[str, Any] | None:
    return {"type": "Sequence", inside: steps} if steps else None


def _merges_by_score(vocabulary: Vocabulary) -> list[list[str]]:
    """Every pair of tokens whose concatenation is one, the best score first.

    sentencepiece joins the best pair, the leftmost among equals. Where several pairs make one token their order
    stands in for "leftmost": in a run of equal letters a shorter rest is found at its right end.
    """
    scores = vocabulary.scores or ()
    normal = {text: index for index, text in _used(vocabulary) if vocabulary.types[index] == TokenType.NORMAL}
    merges = [
        (-float(scores[index]), -at, text)
        for text, index in normal.items()
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    merges.sort(key=lambda merge: merge[:2])
    return [[text[:-at], text[-at:]] for _, at, text in merges]


def _tokenizer_json(vocabulary: Vocabulary, *, model: dict[str, Any], **steps: Any) -> dict[str, Any]:
    bpe = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        **steps,
        "model": bpe | model,
    }


def _template(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """What surrounds a text, and what stands between two; None if nothing."""
    always_bos = vocabulary.model == "llama" or BY_NAME[vocabulary.pre].adds_bos  # llama.cpp's defaults
    start = _token(vocabulary, "bos") if vocabulary.add.get("bos", always_bos) else []
    end = _token(vocabulary, "eos") if vocabulary.add.get("eos", False) else []
    if not start and not end:
        return None
    between = end + start
    if vocabulary.add.get("sep", False):
        between = _token(vocabulary, "sep") or _token(vocabulary, "eos")
    single = [*_special(start, 0), {"Sequence": {"id": "A", "type_id": 0}}, *_special(end, 0)]
    second = [*_special(between, 1), {"Sequence": {"id": "B", "type_id": 1}}, *_special(end, 1)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*_special(start, 0), {"Sequence": {"id": "A", "type_id": 0}}, *second],
        "special_tokens": {
            text: {"id": text, "ids": [index], "tokens": [text]} for index, text in {*start, *end, *between}
        },
    }


def _token(vocabulary: Vocabulary, kind: str) -> list[tuple[int, str]]:
    index = vocabulary.special.get(kind)
    return [] if index is None else [(index, vocabulary.tokens[index])]


def _special(tokens: list[tuple[int, str]], type_id: int) -> list[Mapping[str, Any]]:
    return [{"SpecialToken": {"id": text, "type_id": type_id}} for _, text in tokens]
