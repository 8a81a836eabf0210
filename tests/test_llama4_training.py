"""The small Llama 4 that reads digits: how it is trained, and what the one in ``data/`` can do."""

from pathlib import Path

import llama4_training
import numpy as np
import pytest
import torch
from llama4_reference import Reference
from llama4_training import BATCH, KINDS, Training, accuracy, blank, dialogues, right
from safetensors.torch import load_file

WITH_PICTURES = [kind for kind, (digits, _) in KINDS.items() if digits]


def test_steps_from_a_fresh_seed_lower_the_loss(tmp_path: Path, seed: int) -> None:
    training = Training(tmp_path / "x", seed, steps=100)
    batch = dialogues("across", 8, training.rng, side=(40, 40))
    before = training.loss(batch).item()
    for _ in range(8):
        training.step([batch])
    assert training.loss(batch).item() < before - 1


@pytest.mark.parametrize("kind", KINDS)
def test_lessons_are_what_transformers_makes_of_a_dialogue(
    kind: str, llama4_digits: Path, rng: np.random.Generator
) -> None:
    """Ids and tiles, whatever the picture's size; what is learned are the answers with their end, and nothing else."""
    reference = Reference(llama4_digits)
    for dialogue in dialogues(kind, 2, rng):
        expected, pixels = reference.inputs(
            dialogue.messages(answered=True), dialogue.images, add_generation_prompt=False
        )
        ids, labels, tiles = llama4_training.Lessons(llama4_digits)([dialogue])
        assert ids[0].tolist() == expected
        assert pixels is None if tiles is None else np.array_equal(tiles, pixels)
        learned = reference.tokenizer.decode(ids[labels != -100])
        assert learned == "".join(f"{turn.answer}<|eot|>" for turn in dialogue.turns)


@pytest.mark.parametrize("kind", WITH_PICTURES)
def test_it_reads_held_out_digits_and_guesses_when_the_picture_is_black(kind: str, llama4_digits: Path) -> None:
    assert accuracy(llama4_digits, kind) >= (0.95 if KINDS[kind][0] == 1 else 0.9)
    assert accuracy(llama4_digits, kind, 5 * BATCH, change=blank) <= 0.25


def test_greedy_generation_gives_what_accuracy_counts(llama4_digits: Path, rng: np.random.Generator) -> None:
    """Each turn asked after those before it."""
    reference, lessons = Reference(llama4_digits), llama4_training.Lessons(llama4_digits)
    for kind in KINDS:
        (dialogue,) = dialogues(kind, 1, rng, held_out=True)
        said = []
        for at in range(len(dialogue.turns)):
            so_far = llama4_training.Dialogue(dialogue.turns[: at + 1])
            said.append(reference.answer(so_far.messages(), so_far.images) == so_far.answer)
        assert all(said) == right(reference.model, lessons, [dialogue])[0], kind


def test_the_plan_counts(llama4_digits: Path) -> None:
    """Tiles in reverse order before the global one are read worse, each tile's columns as rows hardly ever right."""

    def reverse(tiles: torch.Tensor) -> torch.Tensor:
        by_picture = tiles.unflatten(0, (BATCH, -1))
        return torch.cat([by_picture[:, :-1].flip(1), by_picture[:, -1:]], 1).flatten(0, 1)

    assert accuracy(llama4_digits, "across", 5 * BATCH, change=reverse) < 0.85
    assert accuracy(llama4_digits, "across", 5 * BATCH, change=lambda tiles: tiles.transpose(2, 3)) < 0.3


def test_the_committed_folder_is_what_the_script_writes(llama4_digits: Path, tmp_path: Path) -> None:
    """But for the weights, and for what depends on the versions of Python (vocabulary) and transformers (template)."""
    fresh = Training(tmp_path / "x", seed=0)
    fresh.save()
    assert {path.name for path in fresh.folder.iterdir()} == {path.name for path in llama4_digits.iterdir()}
    for path in fresh.folder.glob("*config.json"):
        assert path.read_bytes() == (llama4_digits / path.name).read_bytes(), path.name
    shapes = [
        {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
        for folder in (fresh.folder, llama4_digits)
    ]
    assert shapes[0] == shapes[1]
    assert sum(path.stat().st_size for path in llama4_digits.iterdir()) < 4_000_000
