"""vocab.json and merges.txt, from before tokenizer.json: what they leave open is known by the tokenizer's class.

The class's own steps are those that transformers builds in ``models/gpt2/tokenization_gpt2.py`` and
``models/qwen2/tokenization_qwen2.py``. Its other classes read no such files, so nothing is known for them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.checkpoint import read_json
from converters.tokenizers.pre_tokenizers import BY_NAME
from converters.tokenizers.special_tokens import own_class
from edge_llama.errors import CheckpointError
from edge_llama.host.regular_files import text_of

VOCAB, MERGES = "vocab.json", "merges.txt"
_STEPS: Mapping[str, tuple[str, Sequence[str]]] = {
    "GPT2Tokenizer": ("gpt-2", ()),
    "Qwen2Tokenizer": ("qwen2", ("NFC",)),
}
"""By class: how text is split, by llama.cpp's name, and the forms of Unicode that it is brought into before."""


def read_pair(folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What tokenizer.json would say; {} where the files aren't there.

    CheckpointError if one is missing, for a line that is no merge, and for a class that doesn't say how text is split.
    """
    vocab, merges = folder / VOCAB, folder / MERGES
    if not vocab.is_file() and not merges.is_file():
        return {}
    for path, other in ((vocab, MERGES), (merges, VOCAB)):
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing beside {other}", remedy="download it too")
    name = own_class({}, settings, config)
    if name not in _STEPS or settings.get("add_prefix_space"):
        given = settings.get("tokenizer_class") or config.get("tokenizer_class")
        told = f"add_prefix_space of {name}" if name in _STEPS else f"tokenizer_class {given!r:.100}"
        raise CheckpointError(
            f"{folder}: {VOCAB} and {MERGES} without tokenizer.json, and {told} doesn't say how text is split",
            remedy=f"put tokenizer.json beside them; known without it: {' and '.join(_STEPS)}",
        )
    return tokenizer_of_pair(folder, *_STEPS[name])


def tokenizer_of_pair(folder: Path, pre: str, forms: Sequence[str]) -> dict[str, Any]:
    """The same as a whole tokenizer.json that splits text by ``pre`` after bringing it into Unicode's ``forms``."""
    normalizers = [{"type": form} for form in forms]
    model = {"type": "BPE", "vocab": _words(folder / VOCAB), "merges": _pairs(folder / MERGES)}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": BY_NAME[pre].as_json,
        "model": model,
    }


def _words(path: Path) -> dict[str, int]:
    words = read_json(path)
    for text, index in words.items():
        if type(index) is not int:
            raise CheckpointError(
                f"{path}: {text[:100]!r} is {index!r:.100}, expected a number", remedy="download it again"
            )
    return words


def _pairs(path: Path) -> list[str]:
    """A line a merge, after one that begins with ``#version``."""
    try:
        lines = text_of(path, "utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", remedy="download it again") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#version"):
            continue
        if line.count(" ") != 1 or not all(line.split(" ")):
            raise CheckpointError(
                f"{path}: line {number:,} is {line[:80]!r}, expected two tokens", remedy="download it again"
            )
        pairs.append(line)
    if not pairs:
        raise CheckpointError(f"{path}: holds no merge", remedy="download it again")
    return pairs
