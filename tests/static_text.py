"""Text towers for NPUs, for tests: the small model that answers, measured on what it says and converted to integers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import converters
from converters.sources import open_checkpoint
from converters.targets.onnx.static_ranges import measure_text
from quant.ranges import Ranges

N_CTX, WINDOW = 256, 32
_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n"
_TURNS = {
    **{
        f"What is the capital of {where}?": f"The capital of {where} is {what}."
        for where, what in (("Japan", "Tokyo"), ("Italy", "Rome"), ("Egypt", "Cairo"), ("France", "Paris"))
    },
    "Hello!": "Hello! How can I help you?",
    "Thanks!": "You are welcome.",
    "Who are you?": "I am SmolLM.",
    "Say 5.": "5",
    "Tell a very long story.": "The ship sails on and on and on and on and on and on and on and on and on and on",
}


def chats() -> Iterator[str]:
    """What the small model is asked and answers, as its template renders it."""
    pairs = [
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n"
        for asked, said in _TURNS.items()
    ]
    for first in range(len(pairs)):
        yield _SYSTEM + "".join(pairs[first:] + pairs[:first])


def measured(source: Path) -> Ranges:
    """The ranges of the small model."""
    return measure_text(open_checkpoint(source), chats(), threads=2)


def in_integers(source: Path, folder: Path, quant: str = "a16w8", **options: Any) -> Path:
    """``source`` as ``folder``/``quant``, by the ranges that are written beside it."""
    ranges = folder / "ranges.json"
    if not ranges.exists():
        ranges.write_bytes(measured(source).encode())
    given = {"to": "onnx", "quant": quant, "calibration": [ranges], "n_ctx": N_CTX, "window": WINDOW, **options}
    converters.convert(source, folder / quant, **given)
    return folder / quant
