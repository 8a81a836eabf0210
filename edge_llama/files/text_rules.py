"""What a vocabulary does with text that GGUF has no key for: told by keys of our own, done by our own runtime.

For a sentencepiece vocabulary llama.cpp knows a flag: a space before each text between special tokens, or none. It
normalizes nothing, and lets no token take the white space beside it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edge_llama.errors import ArtifactError
from edge_llama.files.gguf import DAMAGED, Header, Value, ValueType, array, boolean, string

PREFIX = "edge_llama.tokenizer."
"""The keys of GGUF metadata begin so."""
UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


class SpacePrefix(StrEnum):
    """Where a sentencepiece vocabulary puts a space before text, if not as llama.cpp's flag says.

    ``metaspace`` is the step of tokenizers: none where there is one already.
    """

    EACH = "each"
    """Before each text between control tokens, as sentencepiece does; tokens that a text forms get none after them."""
    METASPACE_ALWAYS = "metaspace_always"
    """Before each text between added tokens."""
    METASPACE_FIRST = "metaspace_first"
    """Before the first text alone, unless a token comes before it: what transformers calls ``legacy: false``."""


@dataclass(frozen=True, slots=True)
class TextRules:
    """What is done before the vocabulary's own work.

    ``unicode_forms`` are applied in order (see ``unicodedata.normalize``). ``merges_spaces``: runs of spaces become
    one, those at both ends none. ``lstrip`` and ``rstrip``: tokens that take the white space before or after them.
    """

    space_prefix: SpacePrefix | None = None
    unicode_forms: tuple[str, ...] = ()
    merges_spaces: bool = False
    lstrip: tuple[int, ...] = ()
    rstrip: tuple[int, ...] = ()


PLAIN = TextRules()
"""As llama.cpp has it."""


def cut_step(words: list[str]) -> dict[str, Any]:
    """The step of a tokenizer.json that takes words out of a text whole."""
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def cut_words(step: Mapping[str, Any]) -> list[str]:
    """The words of such a step; none if it is another."""
    pattern = (step.get("pattern") or {}).get("Regex")
    if step.get("type") != "Split" or not isinstance(pattern, str):
        return []
    escaped = re.findall(r"(?:\\.|[^\\|])+", pattern, re.DOTALL)
    words = [re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL) for word in escaped]
    return words if {"invert": False, **step} == cut_step(words) else []


def to_gguf(rules: TextRules) -> dict[str, Value]:
    """The rules under our keys; none for what is as llama.cpp has it."""
    fields: dict[str, Value] = {}
    if rules.space_prefix is not None:
        fields[PREFIX + "space_prefix"] = string(rules.space_prefix.value)
    if rules.unicode_forms:
        fields[PREFIX + "unicode_forms"] = array(ValueType.STRING, list(rules.unicode_forms))
    if rules.merges_spaces:
        fields[PREFIX + "merges_spaces"] = boolean(True)
    for key in ("lstrip", "rstrip"):
        if ids := getattr(rules, key):
            fields[PREFIX + key] = array(ValueType.UINT32, list(ids))
    return fields


def from_gguf(header: Header, n_vocab: int) -> TextRules:
    """The rules in a file of ``n_vocab`` tokens. ArtifactError names a key that holds what is no rule."""
    prefix = header.get(PREFIX + "space_prefix", str, "")
    if prefix and prefix not in list(SpacePrefix):
        raise _wrong(header, "space_prefix", f"expected one of {', '.join(SpacePrefix)}")
    forms = _items(header, "unicode_forms", ValueType.STRING)
    if unknown := [form for form in forms if form not in UNICODE_FORMS]:
        raise _wrong(header, "unicode_forms", f"{unknown[0]!r:.100} is none of {', '.join(UNICODE_FORMS)}")
    ids = {key: tuple(map(int, _items(header, key, ValueType.UINT32))) for key in ("lstrip", "rstrip")}
    for key, tokens in ids.items():
        if any(token >= n_vocab for token in tokens):
            raise _wrong(header, key, f"expected ids below {n_vocab:,}")
    return TextRules(
        space_prefix=SpacePrefix(prefix) if prefix else None,
        unicode_forms=forms,
        merges_spaces=header.get(PREFIX + "merges_spaces", bool, False),
        **ids,
    )


def _items(header: Header, key: str, item: ValueType) -> tuple[Any, ...]:
    value = header.fields.get(PREFIX + key)
    if value is None:
        return ()
    if value.type is not ValueType.ARRAY or value.item is not item:
        raise _wrong(header, key, f"expected an array of {item.name.lower()}")
    return tuple(value.data)


def _wrong(header: Header, key: str, expected: str) -> ArtifactError:
    found = str(header.fields[PREFIX + key].data)
    return ArtifactError(f"{header.path}: {PREFIX}{key} is {found[:100]!r}: {expected}", remedy=DAMAGED)
