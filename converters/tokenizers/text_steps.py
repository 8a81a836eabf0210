"""What a tokenizer does with text before its words, by its files: normalizer, prefix rule, flags of added tokens.

Whole steps are compared, as :mod:`~converters.tokenizers.pre_tokenizers` does for byte-level vocabularies: what is not
known here is refused by name. llama.cpp's own rule is a space before each text between special tokens, or none; what
differs from that becomes :class:`~edge_llama.files.text_rules.TextRules`, which our runtime heeds.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converters.tokenizers.sentencepiece_model import Spec
from edge_llama.errors import CheckpointError
from edge_llama.files.text_rules import UNICODE_FORMS, SpacePrefix, TextRules, cut_words

SPACE = "\u2581"
# The steps by which transformers (``SpmConverter.build_tokenizer_from_spm_proto``) says what sentencepiece does.
ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
DOUBLE = {"type": "Replace", "pattern": {"Regex": rf"\A{SPACE}"}, "content": SPACE * 2}
MERGE_SPACES = (
    {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
)
# Gemma's, which finds no space where all are escaped.
_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_REMEDY = "use another tokenizer, or a program that runs this one"


@dataclass(frozen=True, slots=True)
class Steps:
    """``add_space_prefix`` is llama.cpp's flag; None: as it does by itself. ``whole``: tokens cut out of text."""

    add_space_prefix: bool | None
    rules: TextRules
    whole: frozenset[str] = frozenset()


def unicode_forms(path: Path, tokenizer: Mapping[str, Any]) -> tuple[str, ...]:
    """The normalizer of a byte-level tokenizer.json: Unicode's forms, which our runtime applies."""
    steps = list(_parts(tokenizer.get("normalizer"), "normalizers"))
    if unknown := [step for step in steps if step.get("type") not in UNICODE_FORMS]:
        raise _unknown(path, "normalizer", unknown[0])
    return tuple(step["type"] for step in steps)


def sentencepiece_steps(path: Path, tokenizer: Mapping[str, Any]) -> Steps:
    """Normalizer and pre-tokenizer of a sentencepiece vocabulary's tokenizer.json."""
    normalizers = list(_parts(tokenizer.get("normalizer"), "normalizers"))
    known = (ESCAPE, PREPEND, DOUBLE, *MERGE_SPACES)
    for step in normalizers:
        if step not in known and step.get("type") not in UNICODE_FORMS:
            raise _unknown(path, "normalizer", step)
    scheme, whole, escapes = None, frozenset[str](), ESCAPE in normalizers
    for step in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and scheme is None:
            scheme, escapes = _metaspace(path, step), True
        elif (words := frozenset(cut_words(step))) and words <= tokenizer["model"]["vocab"].keys():
            whole = words
        elif {"invert": False, **step} != _AT_SPACES or not escapes:
            raise _unknown(path, "pre_tokenizer", step)
    merges = [step in normalizers for step in MERGE_SPACES]
    if not escapes or any(merges) != all(merges):
        raise CheckpointError(f"{path}: normalizer and pre_tokenizer don't say what spaces become", remedy=_REMEDY)
    flag, prefix = _prefix(path, scheme, PREPEND in normalizers, DOUBLE in normalizers, bool(whole))
    forms = tuple(step["type"] for step in normalizers if step.get("type") in UNICODE_FORMS)
    return Steps(flag, TextRules(prefix, forms, merges_spaces=all(merges)), whole)


def sentencepiece_spec(spec: Spec, *, legacy: bool, has_whole: bool) -> Steps:
    """The normalizer of a tokenizer.model that stands alone.

    ``legacy`` is transformers' word for each text between special tokens getting the space that sentencepiece puts
    before a text; else the first alone. ``has_whole``: whether there are pieces that the user defined.
    """
    prefix = SpacePrefix.EACH if has_whole else None
    if not legacy or not spec.has_prefix:
        prefix = SpacePrefix.METASPACE_FIRST if spec.has_prefix else None
    return Steps(None if spec.has_prefix else False, TextRules(prefix, merges_spaces=spec.merges_spaces))


def with_flags(path: Path, rules: TextRules, entries: Iterable[tuple[int, Mapping[str, Any]]]) -> TextRules:
    """``rules`` with the flags of added tokens, which are given by id."""
    sides: dict[str, list[int]] = {"lstrip": [], "rstrip": []}
    for index, entry in entries:
        if entry.get("single_word"):
            raise CheckpointError(
                f"{path}: the added token {entry['content'][:100]!r} is found as a single word alone (single_word), "
                "which no vocabulary written here can say",
                remedy="set single_word to false if the model was trained so",
            )
        for side, ids in sides.items():
            if entry.get(side):
                ids.append(index)
    return replace(rules, lstrip=tuple(sorted(set(sides["lstrip"]))), rstrip=tuple(sorted(set(sides["rstrip"]))))


def _parts(step: Any, inside: str) -> Iterator[Mapping[str, Any]]:
    """A step, or the steps of a sequence, one after the other; what is no object comes as one without a type."""
    if step is None:
        return
    nested = step.get(inside) if isinstance(step, dict) and step.get("type") == "Sequence" else None
    if isinstance(nested, list):
        for part in nested:
            yield from _parts(part if part is not None else {}, inside)
    else:
        yield step if isinstance(step, dict) else {"": step}


def _metaspace(path: Path, step: Mapping[str, Any]) -> str:
    """The prefix rule of ``Metaspace``: always, first or never."""
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    if step.get("replacement") != SPACE or step.get("split", True) or scheme not in ("always", "first", "never"):
        raise _unknown(path, "pre_tokenizer", step)
    return str(scheme)


def _prefix(
    path: Path, scheme: str | None, prepends: bool, doubles: bool, has_whole: bool
) -> tuple[bool | None, SpacePrefix | None]:
    """llama.cpp's flag, and our own rule where that doesn't say all."""
    if prepends and (scheme not in (None, "never") or doubles or has_whole):
        raise CheckpointError(
            f"{path}: its normalizer and its pre_tokenizer both put a space before text", remedy=_REMEDY
        )
    if prepends or (scheme == "always" and doubles):
        return None, SpacePrefix.EACH if has_whole else None
    if scheme == "always":
        return None, SpacePrefix.METASPACE_ALWAYS
    if scheme == "first":
        return None, SpacePrefix.METASPACE_FIRST
    return False, None


def _unknown(path: Path, part: str, step: Mapping[str, Any]) -> CheckpointError:
    return CheckpointError(
        f"{path}: {part}: {str(dict(step))[:300]} has no equal in the vocabularies written here", remedy=_REMEDY
    )
