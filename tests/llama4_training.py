"""A small Llama 4 that really learned to read digits in pictures, in minutes on two cores.

It answers about single digits, pairs side by side and stacked, in pictures of any size that become one tile or many,
about several pictures in one conversation, and a greeting. It learns from exactly what transformers' processor makes of
pictures and prompts. ``data/llama4_digits`` is what ``python tests/llama4_training.py OUT --seed 0`` wrote.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # torch's threads, which share their cores

import checkpoints
import llama4
import numpy as np
import torch
from llama4_reference import Reference, processor
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from transformers import AutoConfig, Llama4ForConditionalGeneration

TEXT = {"initializer_range": 0.05}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "projector_input_dim": 128,
    "projector_output_dim": 128,
    "vision_output_dim": 128,
    "initializer_range": 0.05,
}
STEPS, RATE = 2000, 2e-3
BATCH = 16
_HELD_OUT = 400

Picture = NDArray[np.uint8]
"""(height, width, 3)"""


@dataclass(frozen=True, slots=True)
class Turn:
    """What is asked, with pictures before the text, and the right answer."""

    pictures: tuple[Picture, ...]
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    turns: tuple[Turn, ...]

    @property
    def pictures(self) -> list[Picture]:
        return [picture for turn in self.turns for picture in turn.pictures]

    @property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(picture) for picture in self.pictures]

    @property
    def answer(self) -> str:
        """To the last question."""
        return self.turns[-1].answer

    def messages(self, *, answered: bool = False) -> list[dict[str, Any]]:
        """In Hugging Face's form, up to the last question or with its answer."""
        found: list[dict[str, Any]] = []
        for turn in self.turns:
            images = [{"type": "image"} for _ in turn.pictures]
            found.append({"role": "user", "content": [*images, {"type": "text", "text": turn.question}]})
            found.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return found if answered else found[:-1]


ONE, PAIR = "Which digit is this?", "Which digits are these?"
_HELLO = Turn((), "Hello!", "Hello! Show me a picture with digits.")
_WHO = Turn((), "Who are you?", "I read digits in pictures.")
_THANKS = Turn((), "Thank you!", "You are welcome.")


def _across(cells: Picture, digits: Sequence[str]) -> Turn:
    return Turn((np.hstack(cells),), PAIR, f"left {digits[0]}, right {digits[1]}")


def _stacked(cells: Picture, digits: Sequence[str]) -> Turn:
    return Turn((np.vstack(cells),), PAIR, f"top {digits[0]}, bottom {digits[1]}")


def _single(cell: Picture, digit: str) -> Turn:
    return Turn((cell,), ONE, digit)


KINDS: dict[str, tuple[int, Callable[[Picture, Sequence[str]], tuple[Turn, ...]]]] = {
    "single": (1, lambda cells, digits: (_single(cells[0], digits[0]),)),
    "across": (2, lambda cells, digits: (_across(cells, digits),)),
    "stacked": (2, lambda cells, digits: (_stacked(cells, digits),)),
    "two pictures": (
        2,
        lambda cells, digits: (Turn(tuple(cells), PAIR, f"first {digits[0]}, second {digits[1]}"),),
    ),
    "two turns": (2, lambda cells, digits: (_single(cells[0], digits[0]), _single(cells[1], digits[1]))),
    "left and right": (
        2,
        lambda cells, digits: (
            _across(cells, digits),
            Turn((), "Which is on the left?", digits[0]),
            Turn((), "And on the right?", digits[1]),
        ),
    ),
    "top and bottom": (
        2,
        lambda cells, digits: (
            _stacked(cells, digits),
            Turn((), "Which is at the top?", digits[0]),
            Turn((), "And at the bottom?", digits[1]),
        ),
    ),
    "talk": (0, lambda cells, digits: (_HELLO, _WHO, _THANKS)),
    "talk about a picture": (1, lambda cells, digits: (_HELLO, _single(cells[0], digits[0]), _THANKS)),
}
"""How many digits a dialogue of this kind has, and what is said about them."""


@cache
def _digits() -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """8 x 8 pixels from 0 to 1, labels, and an order: the first ``_HELD_OUT`` are never learned from."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return torch.from_numpy(found.images / 16).float(), found.target, order


def dialogues(
    kind: str, count: int, rng: np.random.Generator, *, held_out: bool = False, side: tuple[int, int] | None = None
) -> list[Dialogue]:
    """``count`` of one kind, with digits of one size: ``side`` (height, width), else a tile's, smaller or larger."""
    each, say = KINDS[kind]
    tile = llama4.VISION["image_size"]
    least, most = ((tile, tile), (30, 84), (85, 168))[rng.choice(3, p=(0.5, 0.4, 0.1))]
    height, width = side or rng.integers(least, most + 1, 2).tolist()
    order = _digits()[2]
    chosen = rng.choice(order[:_HELD_OUT] if held_out else order[_HELD_OUT:], (count, each))
    cells = _draw(chosen.ravel(), height, width, rng).reshape(count, each, height, width, 3)
    labels = _digits()[1][chosen].astype(str).tolist()
    return [Dialogue(say(*both)) for both in zip(cells, labels, strict=True)]


def _draw(chosen: NDArray[np.int64], height: int, width: int, rng: np.random.Generator) -> Picture:
    """(count, height, width, 3): each digit somewhat turned, shifted and scaled, bilinearly."""
    if not len(chosen):
        return np.empty((0, height, width, 3), np.uint8)
    angle, scale = rng.normal(0, 0.06, len(chosen)), rng.uniform(0.85, 1.2, len(chosen))
    across, up = np.cos(angle) * scale, np.sin(angle) * scale
    shift = rng.uniform(-0.12, 0.12, (2, len(chosen)))
    theta = np.stack([across, -up, shift[0], up, across, shift[1]], -1).reshape(-1, 2, 3)
    grid = affine_grid(torch.from_numpy(theta).float(), [len(chosen), 1, height, width], align_corners=False)
    drawn = grid_sample(_digits()[0][chosen][:, None], grid, align_corners=False)[:, 0]
    return (drawn * 255).round().byte()[..., None].expand(-1, -1, -1, 3).numpy()


class Lessons:
    """Dialogues as tensors, by transformers' own processor; pictures of one size are processed together."""

    def __init__(self, folder: Path) -> None:
        self.processor = processor(folder)
        tokenizer = self.processor.tokenizer
        self.start = tokenizer.encode("<|header_start|>assistant<|header_end|>\n\n", add_special_tokens=False)
        self.end, self.pad = tokenizer.convert_tokens_to_ids(["<|eot|>", "<|finetune_right_pad|>"])

    def __call__(self, batch: Sequence[Dialogue]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Ids and labels, (count, tokens), padded on the right, and all tiles; a label is an answer's id or -100."""
        pictures = [picture for dialogue in batch for picture in dialogue.pictures]
        texts = [self.processor.apply_chat_template(dialogue.messages(answered=True)) for dialogue in batch]
        tiles = None
        if pictures:
            images = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]
            found = self.processor.image_processor(images, return_tensors="pt", do_convert_rgb=False)
            plan = self.processor.replace_image_token(found, 0)  # All are of one size, so of one plan.
            texts, tiles = [text.replace("<|image|>", plan) for text in texts], found["pixel_values"].float()
        rows = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
        labels = torch.tensor([self._labels(row) + [-100] * (width - len(row)) for row in rows])
        return ids, labels, tiles

    def _labels(self, row: list[int]) -> list[int]:
        labels, size = [-100] * len(row), len(self.start)
        for at in range(len(row) - size):
            if row[at : at + size] == self.start:
                end = row.index(self.end, at) + 1
                labels[at + size : end] = row[at + size : end]
        return labels


class Training:
    """A model from a fresh seed in ``folder``, which has everything but weights."""

    def __init__(self, folder: Path, seed: int, steps: int = STEPS) -> None:
        folder.mkdir(parents=True)
        llama4.write_settings(folder, llama4.config(llama4.SCOUT | TEXT, VISION), "BF16")
        torch.manual_seed(seed)
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.model = Llama4ForConditionalGeneration(AutoConfig.from_pretrained(folder))
        self.lessons = Lessons(folder)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, RATE, total_steps=steps, pct_start=0.05)

    def loss(self, batch: Sequence[Dialogue]) -> torch.Tensor:
        """Cross-entropy of all answers."""
        logits, labels = answers(self.model, *self.lessons(batch))
        return cross_entropy(logits, labels)

    def step(self, batches: Sequence[Sequence[Dialogue]]) -> float:
        self.optimizer.zero_grad()
        losses = [self.loss(batch) / len(batches) for batch in batches]
        for loss in losses:
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(sum(loss.item() for loss in losses))

    def save(self) -> None:
        tensors = {name: tensor.float().numpy() for name, tensor in self.model.state_dict().items()}
        checkpoints.write_weights(self.folder, tensors, "BF16", shards=1)


def train(folder: Path, seed: int, steps: int = STEPS) -> Path:
    training, began = Training(folder, seed, steps), time.monotonic()
    pairs, others = ("across", "stacked", "left and right", "top and bottom"), tuple(KINDS)
    for step in range(steps):
        kinds = ("single", "single") if step < steps / 8 else (pairs[step % 4], others[step % len(others)])
        loss = training.step([dialogues(kind, BATCH, training.rng) for kind in kinds])
        if step % 100 == 0:
            print(f"step {step}: loss {loss:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    training.save()
    return folder


def answers(
    model: Any, ids: torch.Tensor, labels: torch.Tensor, tiles: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the model's ``forward``, but logits only where an answer is: (answers' tokens, n_vocab), and what they are."""
    embedded = model.get_input_embeddings()(ids)
    if tiles is not None:
        features = model.multi_modal_projector(model.vision_model(tiles).last_hidden_state)
        places = (ids == model.config.image_token_index).unsqueeze(-1)
        embedded = embedded.masked_scatter(places, features)
    hidden = model.language_model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    counts = labels[:, 1:] != -100
    return model.language_model.lm_head(hidden[:, :-1][counts]), labels[:, 1:][counts]


def right(
    model: Any,
    lessons: Lessons,
    batch: Sequence[Dialogue],
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> NDArray[np.bool_]:
    """(count,): whether greedy decoding gives all answers of each dialogue; ``change`` is done to the tiles before."""
    ids, labels, tiles = lessons(batch)
    if tiles is not None and change:
        tiles = change(tiles)
    with torch.inference_mode():
        logits, wanted = answers(model, ids, labels, tiles)
    rows = (labels[:, 1:] != -100).nonzero()[:, 0]
    wrong = torch.zeros(len(batch), dtype=torch.int64).index_add(0, rows, (logits.argmax(-1) != wanted).long())
    return (wrong == 0).numpy()


def blank(tiles: torch.Tensor) -> torch.Tensor:
    """Black."""
    return torch.full_like(tiles, -1)


def accuracy(folder: Path, kind: str, count: int = 20 * BATCH, seed: int = 1, **options: Any) -> float:
    """The share of right dialogues of transformers in f32, with held-out digits in pictures of many sizes."""
    model, lessons, rng = Reference(folder).model, Lessons(folder), np.random.default_rng(seed)
    batches = (dialogues(kind, BATCH, rng, held_out=True) for _ in range(count // BATCH))
    return float(np.mean([right(model, lessons, batch, **options) for batch in batches]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    train(arguments.out, arguments.seed, arguments.steps)
    for kind in KINDS:
        shares = accuracy(arguments.out, kind), accuracy(arguments.out, kind, change=blank)
        print("{}: {:.1%} right, {:.1%} of black pictures".format(kind, *shares), flush=True)


if __name__ == "__main__":
    main()
