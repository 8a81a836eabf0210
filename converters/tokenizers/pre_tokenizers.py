"""How byte-level vocabularies split text before merging: llama.cpp's names, and the same as steps of a tokenizer.json.

One table, read both ways. Whole steps are compared: one that differs in a setting splits other text, and its model
would answer worse in silence.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_llama.errors import CheckpointError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_REGEX = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2_REGEX = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA4_REGEX = (  # GPT-4o's too
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(regex: str) -> dict[str, Any]:
    """The step that cuts a text where ``regex`` matches."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


_DIGITS = {"type": "Digits", "individual_digits": True}
BYTE_LEVEL: Mapping[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_WORDS, _BYTES = {**BYTE_LEVEL, "use_regex": True}, {**BYTE_LEVEL, "use_regex": False}


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A way to split text. ``names`` are llama.cpp's for it, the first is written.

    ``ignore_merges``: whether a word that is a token is taken whole, whatever merges make of it. ``adds_bos``:
    llama.cpp puts a BOS before text unless told otherwise. Qwen2's is published with a normalizer, NFC, which llama.cpp
    has not: see :class:`edge_llama.files.text_rules.TextRules`.
    """

    names: tuple[str, ...]
    steps: tuple[Mapping[str, Any], ...]
    ignore_merges: bool = False
    adds_bos: bool = False

    @property
    def as_json(self) -> dict[str, Any]:
        """``pre_tokenizer`` of a tokenizer.json."""
        return {"type": "Sequence", "pretokenizers": [dict(step) for step in self.steps]}


PRE_TOKENIZERS = (
    PreTokenizer(
        ("llama-bpe", "llama-v3", "llama3"), (_split(LLAMA3_REGEX), _BYTES), ignore_merges=True, adds_bos=True
    ),
    PreTokenizer(("smaug-bpe",), (_split(LLAMA3_REGEX), _BYTES)),  # SmolLM3's
    PreTokenizer(("llama4", "gpt-4o"), (_split(LLAMA4_REGEX), _BYTES), ignore_merges=True),
    PreTokenizer(("qwen2",), (_split(QWEN2_REGEX), _BYTES)),  # Qwen3's too
    PreTokenizer(("smollm",), (_DIGITS, _WORDS)),
    PreTokenizer(("gpt-2",), (_WORDS,)),
)
"""The splitting rules that are known in both forms, by the regular expressions of llama.cpp's ``llama-vocab.cpp``."""
BY_NAME: Mapping[str, PreTokenizer] = {name: known for known in PRE_TOKENIZERS for name in known.names}
_DEFAULTS = {"Split": {"invert": False}, "ByteLevel": {"use_regex": True}}  # of tokenizers, for keys that may be absent


def pre_tokenizer_name(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """The name under which llama.cpp splits as ``tokenizer`` does; CheckpointError if it has none."""
    steps = [_comparable(step) for step in _steps(tokenizer.get("pre_tokenizer"))]
    found = [known for known in PRE_TOKENIZERS if steps == [_comparable(step) for step in known.steps]]
    if not found:
        raise CheckpointError(
            f"{path}: unknown pre-tokenizer: {json.dumps(tokenizer.get('pre_tokenizer'))[:300]}",
            remedy="supported: those of Llama 3, Llama 4, Qwen2 and Qwen3, SmolLM, SmolLM3 and GPT-2",
        )
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    return next((known for known in found if known.ignore_merges == whole_words), found[0]).names[0]


def _steps(pre_tokenizer: Any) -> Iterator[Any]:
    """The steps of sequences, one after the other; what is no step is passed on, to be recognised as nothing known."""
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    if isinstance(steps, list) and pre_tokenizer.get("type") == "Sequence":
        for step in steps:
            yield from _steps(step)
    else:
        yield pre_tokenizer


def _comparable(step: Any) -> Any:
    """A step with its defaults, without what moves only offsets into the text."""
    if not isinstance(step, Mapping):
        return step
    defaults = _DEFAULTS.get(str(step.get("type")), {})
    return {**defaults, **{key: value for key, value in step.items() if key != "trim_offsets"}}
