"""llama.cpp's name for the rule by which a tokenizer.json splits text before merging.

Whole steps are compared: one that differs in a setting splits other text, and its model would answer worse in silence.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_llama.errors import CheckpointError

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA4_REGEX = (  # GPT-4o's too
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex: str) -> dict[str, Any]:
    """The step that cuts a text where ``regex`` matches."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_KNOWN = {
    "llama-bpe": [split(LLAMA3_REGEX), _BYTES | {"use_regex": False}],
    "llama4": [split(LLAMA4_REGEX), _BYTES | {"use_regex": False}],
    "smollm": [_DIGITS, _BYTES],
    "gpt-2": [_BYTES],
}
_DEFAULTS = {"Split": {"invert": False}, "ByteLevel": {"use_regex": True}}  # of tokenizers, for keys that may be absent


def pre_tokenizer_name(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """The name under which llama.cpp splits as ``tokenizer`` does; CheckpointError if it has none."""
    steps = [_normalized(step) for step in _steps(tokenizer.get("pre_tokenizer"))]
    for name, known in _KNOWN.items():
        if steps == known and not tokenizer.get("normalizer"):
            whole_words_first = tokenizer["model"].get("ignore_merges")
            return "smaug-bpe" if name == "llama-bpe" and not whole_words_first else name
    raise CheckpointError(
        f"{path}: unknown pre-tokenizer: {json.dumps(tokenizer.get('pre_tokenizer'))[:300]}",
        remedy="supported: those of Llama 3, Llama 4, SmolLM and GPT-2",
    )


def _steps(pre_tokenizer: Any) -> Iterator[Any]:
    """The steps of sequences, one after the other; what is no step is passed on, to be recognised as nothing known."""
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    if isinstance(steps, list) and pre_tokenizer.get("type") == "Sequence":
        for step in steps:
            yield from _steps(step)
    else:
        yield pre_tokenizer


def _normalized(step: Any) -> Any:
    """A step with its defaults, without what moves only offsets into the text."""
    if not isinstance(step, dict):
        return step
    defaults = _DEFAULTS.get(str(step.get("type")), {})
    return {**defaults, **{key: value for key, value in step.items() if key != "trim_offsets"}}
