"""The same held-out pictures asked of transformers and of edge-llama: who answers what, and who is right."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llama4_reference import Reference
from llama4_training import Dialogue, Turn, dialogues

import converters
import edge_llama
from edge_llama import Image, Message
from edge_llama.media.llama4_tiles import tiles

KINDS = ("single", "across", "stacked", "two pictures")
EXACT = {"kv_format": "f32", "flash_attention": False}
"""So that only the order of additions differs from transformers in float32."""


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out picture (or two) of a kind, what is asked, and the right answer."""

    kind: str
    turn: Turn

    @property
    def message(self) -> Message:
        return Message("user", [*map(Image.open, self.turn.pictures), self.turn.question])


def questions(count: int, seed: int = 2) -> list[Question]:
    """Of all kinds in turn, each picture of a size of its own: a tile's, smaller and larger ones, odd ones."""
    rng = np.random.default_rng(seed)
    kinds = [KINDS[at % len(KINDS)] for at in range(count)]
    return [Question(kind, dialogues(kind, 1, rng, held_out=True)[0].turns[0]) for kind in kinds]


def theirs(reference: Reference, question: Question, *, same_pixels: bool = True) -> str:
    """transformers' greedy answer; with ``same_pixels`` of ours, without its rounding to bfloat16."""
    dialogue = Dialogue((question.turn,))
    ids, pixels = reference.inputs(dialogue.messages(), dialogue.images)
    assert pixels is not None
    if same_pixels:
        pixels = np.concatenate([tiles(image, _spec(pixels)) for _, image in question.message.images])
    return reference.tokenizer.decode(reference.generate(ids, pixels), skip_special_tokens=True)


def _spec(pixels: np.ndarray) -> edge_llama.media.llama4_tiles.VisionSpec:  # type: ignore[type-arg]
    return edge_llama.media.llama4_tiles.VisionSpec(tile=pixels.shape[-1], max_tiles=16, tokens_per_tile=1, n_embd=1)


def ours(model: edge_llama.Model, question: Question, *, blank: bool = False) -> str:
    message = question.message
    if blank:
        black = [Image.open(np.zeros_like(picture)) for picture in question.turn.pictures]
        message = Message("user", [*black, question.turn.question])
    return model.answer([message], temperature=0, max_tokens=32).result().text


def right(answers: Sequence[str], asked: Sequence[Question]) -> np.ndarray:  # type: ignore[type-arg]
    """Which answers are right, bool (count,)."""
    return np.array([answer == question.turn.answer for answer, question in zip(answers, asked, strict=True)])


@contextmanager
def opened(checkpoint: Path, folder: Path, quant: str, vision: str, **options: object) -> Iterator[edge_llama.Model]:
    """The checkpoint converted by these two formats, and open."""
    output = folder / f"{quant}-{vision}"
    if not output.exists():
        converters.convert(checkpoint, output, quant=quant, vision_quant=vision)
    with edge_llama.open(output, n_ctx=2048, **EXACT, **options) as model:  # type: ignore[arg-type]
        yield model
