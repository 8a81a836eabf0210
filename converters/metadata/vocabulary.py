"""A vocabulary, and its form in GGUF metadata: equal key by key to what llama.cpp's converter writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from edge_llama.files import text_rules
from edge_llama.files.gguf import Header, Value, ValueType, array, boolean, string, u32

_ID_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "eom": "eom",
    "unk": "unknown",
    "sep": "seperator",  # so spelled in GGUF
    "pad": "padding",
    "mask": "mask",
    "prefix": "prefix",
    "suffix": "suffix",
    "middle": "middle",
}


_DEFAULT_IDS = {"bos": 1, "eos": 2, "unk": 0}  # llama.cpp's, for sentencepiece vocabularies that don't say


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything that turns text into ids and messages into text.

    ``model`` is ``llama`` (sentencepiece: ``scores``) or ``gpt2`` (byte-level BPE: ``merges``), ``pre`` llama.cpp's
    name for the splitting rule. ``special`` maps a kind (bos, eos, ...) to an id, ``add`` tells which are added.
    ``chat_templates`` maps names to templates; the one in use is ``default``. ``add_space_prefix`` is llama.cpp's flag
    for sentencepiece's (None: as it does by itself), ``rules`` what that can't say. ``origin`` is the file that holds
    the words. ``notes`` tell by topic where the files disagree, and which was believed: for the conversion's report.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] | None = None
    merges: Sequence[str] | None = None
    special: Mapping[str, int] = field(default_factory=dict)
    add: Mapping[str, bool] = field(default_factory=dict)
    add_space_prefix: bool | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    rules: text_rules.TextRules = field(default_factory=text_rules.TextRules)
    origin: Path | None = field(default=None, compare=False)
    notes: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def has_space_prefix(self) -> bool:
        """Whether a sentencepiece vocabulary puts a space before text at all."""
        return self.rules.space_prefix is not None or self.add_space_prefix is not False

    @property
    def unknown(self) -> int | None:
        """The token for what no other can express: by its role, or the first of that type; None if there is none."""
        if "unk" in self.special:
            return self.special["unk"]
        return next((index for index, kind in enumerate(self.types) if kind == TokenType.UNKNOWN), None)


def to_gguf(vocabulary: Vocabulary) -> dict[str, Value]:
    """The vocabulary under GGUF's keys."""
    prefix = "tokenizer.ggml."
    fields = {prefix + "model": string(vocabulary.model), prefix + "pre": string(vocabulary.pre)}
    fields[prefix + "tokens"] = array(ValueType.STRING, vocabulary.tokens)
    if vocabulary.scores is not None:
        fields[prefix + "scores"] = array(ValueType.FLOAT32, vocabulary.scores)
    fields[prefix + "token_type"] = array(ValueType.INT32, vocabulary.types)
    if vocabulary.merges is not None:
        fields[prefix + "merges"] = array(ValueType.STRING, vocabulary.merges)
    for kind, index in vocabulary.special.items():
        if kind in _ID_KEYS:
            fields[f"{prefix}{_ID_KEYS[kind]}_token_id"] = u32(index)
    for kind, flag in vocabulary.add.items():
        fields[f"{prefix}add_{kind}_token"] = boolean(flag)
    if vocabulary.add_space_prefix is not None:
        fields[prefix + "add_space_prefix"] = boolean(vocabulary.add_space_prefix)
    return fields | _template_fields(vocabulary.chat_templates)


def _template_fields(templates: Mapping[str, str]) -> dict[str, Value]:
    fields = {}
    names = []
    for name, template in templates.items():
        safe = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
        if safe == "default":
            fields["tokenizer.chat_template"] = string(template)
        else:
            names.append(safe)
            fields[f"tokenizer.chat_template.{safe}"] = string(template)
    if names:
        fields["tokenizer.chat_templates"] = array(ValueType.STRING, names)
    return fields


def from_gguf(header: Header) -> Vocabulary:
    """The vocabulary that a GGUF header holds (already checked by ``read_artifact``)."""
    prefix = "tokenizer.ggml."

    def items(key: str) -> list[Any] | None:
        value = header.fields.get(prefix + key)
        return None if value is None else list(value.data)

    tokens = items("tokens") or []
    ids = {kind: header.fields.get(f"{prefix}{key}_token_id") for kind, key in _ID_KEYS.items()}
    flags = {kind: header.fields.get(f"{prefix}add_{kind}_token") for kind in ("bos", "eos", "sep")}
    space_prefix = header.fields.get(prefix + "add_space_prefix")
    model = header.get(prefix + "model", str, "")
    special = _DEFAULT_IDS if model == "llama" else {}
    return Vocabulary(
        model=model,
        pre=header.get(prefix + "pre", str, "default"),
        tokens=tokens,
        types=[int(kind) for kind in items("token_type") or [TokenType.NORMAL] * len(tokens)],
        scores=items("scores"),
        merges=items("merges"),
        special={
            **{kind: index for kind, index in special.items() if index < len(tokens)},
            **{kind: int(value.data) for kind, value in ids.items() if value is not None},
        },
        add={kind: bool(value.data) for kind, value in flags.items() if value is not None},
        add_space_prefix=None if space_prefix is None else bool(space_prefix.data),
        chat_templates=_templates_from_gguf(header),
        rules=text_rules.from_gguf(header, len(tokens)),
        origin=header.path,
    )


def _templates_from_gguf(header: Header) -> dict[str, str]:
    key = "tokenizer.chat_template"
    default = header.get(key, str, "")
    named = {name.removeprefix(key + "."): name for name in header.fields if name.startswith(key + ".")}
    return ({"default": default} if default else {}) | {name: header.get(full, str, "") for name, full in named.items()}
