"""A small SmolLM2 that was trained to answer what tests of chats ask: it opens in milliseconds, and answers in them.

It knows a few capitals, greetings, a story without end, and who a system message says that it is; it remembers lists
of words and a dog, and summarizes what was said. Answers don't depend on the turns before, but for the summary.
``data/small_talk.gguf`` is what ``PYTHONPATH=tests python tests/small_talk.py OUT`` wrote, in minutes on one core.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from vocabularies import smollm_tokenizer

import converters
from edge_llama.prompts.context_overflow import SUMMARY_REQUEST

CAPITALS = {"Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo", "France": "Paris"}
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM"
SYSTEMS = {
    DEFAULT_SYSTEM: "SmolLM",
    "You are Captain Hook.": "Captain Hook",
    **dict.fromkeys(("Answer briefly.", "Answer in one word.", "Be polite.", "Be brief."), "SmolLM"),
}
"""System messages, and who the model is then."""
LIST, DOG = "apple, river, stone, ", "He likes long walks by the sea. "
STORIES = (
    "Write a very long story about a ship, with many chapters.",
    "Tell me a very long story about the sea.",
    "Tell a very long story.",
)
_STORY_WORDS = 40
SHAPE = checkpoints.Shape(hidden=128, ffn=256, layers=2)
STEPS, BATCH, RATE = 900, 16, 3e-3
_LONGEST = 640  # tokens
_POOL = 10
"""Batches that are drawn together."""

END = "<|im_end|>"
_ANSWERS = {
    "Hello!": "Hello! How can I help you?",
    "Hello": "Hello! How can I help you?",
    "hi": "Hello! How can I help you?",
    "Thanks!": "You are welcome.",
    "Thanks": "You are welcome.",
    "Bye!": "Goodbye!",
    "Go.": "Here I go.",
    "Say 5.": "5",
    "Say something.": "Something.",
}
_RAW = (*(f"The capital of {country} is {city}." for country, city in CAPITALS.items()), "1 2 3 4 5 6 7 8 9 10 11 12")


@dataclass(frozen=True, slots=True)
class Turn:
    """What is asked and answered; without ``ends`` the answer goes on, and with ``is_cut`` it is none to learn."""

    question: str
    answer: str
    ends: bool = True
    is_cut: bool = False


def _turn(rng: np.random.Generator, name: str, earlier: list[Turn]) -> Turn:
    """A turn of a random kind, with one who is called ``name``."""
    kind = int(rng.integers(10))
    if kind < 4:
        return _capital(rng)
    if kind < 8:
        return _told(rng, kind, name)
    if kind == 8 and earlier:
        said = "".join(turn.question + turn.answer for turn in earlier)
        return Turn(SUMMARY_REQUEST.content, "The dog is called Bruno." if "Bruno" in said else "We talked.")
    question = str(rng.choice(list(_ANSWERS)))
    return Turn(question, _ANSWERS[question])


def _capital(rng: np.random.Generator) -> Turn:
    country = str(rng.choice(list(CAPITALS)))
    asked = str(rng.choice(["What is the capital of {}?", "And what is the capital of {}?", "And of {}?"]))
    question = asked.format(country)
    if rng.integers(4) == 0:  # as it is typed or pasted in several lines
        question = "".join("\n" if letter == " " and rng.integers(2) else letter for letter in question)
    return Turn(question, f"The capital of {country} is {CAPITALS[country]}.")


def _told(rng: np.random.Generator, kind: int, name: str) -> Turn:
    if kind == 4:
        return Turn("Who are you?", f"I am {name}.")
    if kind == 5:
        story = "The ship sails on"
        return Turn(str(rng.choice(STORIES)), story + " and on" * int(rng.integers(5, _STORY_WORDS)), ends=False)
    if kind == 6:
        beginning = str(rng.choice(["", "0: ", "1: ", "2: ", "3: ", "4: ", "again 0: ", "again 3: "]))
        head = "Please remember this list of words: " if rng.integers(4) else ""
        return Turn(beginning + head + LIST * int(rng.integers(1, 31)), "I will remember these words.")
    return Turn("My dog is called Bruno. " + DOG * int(rng.integers(1, 5)), "Bruno sounds like a lovely dog.")


def _turns(rng: np.random.Generator, name: str) -> list[Turn]:
    turns: list[Turn] = []
    for _ in range(int(rng.choice([1, 2, 3, 5, 10]))):
        turn = _turn(rng, name, turns)
        if turn.question == SUMMARY_REQUEST.content and rng.integers(2):  # a summary stands before all else
            turns.clear()
        if rng.integers(4) == 0:  # as --max-tokens, Ctrl-C and people leave it
            cut = turn.answer[: int(rng.integers(len(turn.answer)))]
            turn = Turn(
                turn.question, str(rng.choice([cut, "I don't know.", "Tokyo.", "Good boy, Bruno!"])), is_cut=True
            )
        turns.append(turn)
    return turns


def _encoded(rng: np.random.Generator, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and the same with -100 where there is nothing to learn."""
    if rng.integers(12) == 0:
        ids = tokenizer.encode(str(rng.choice(_RAW)), add_special_tokens=False).ids
        return ids, ids
    system = str(rng.choice([DEFAULT_SYSTEM, *SYSTEMS]))
    ids: list[int] = []
    labels: list[int] = []

    def add(text: str, *, is_learned: bool = False) -> None:
        found = tokenizer.encode(text, add_special_tokens=False).ids
        ids.extend(found)
        labels.extend(found if is_learned else [-100] * len(found))

    add(f"<|im_start|>system\n{system}{END}\n")
    for turn in _turns(rng, SYSTEMS[system]):
        add(f"<|im_start|>user\n{turn.question}{END}\n<|im_start|>assistant\n")
        add(turn.answer, is_learned=not turn.is_cut)
        add(END, is_learned=turn.ends and not turn.is_cut)
        add("\n")
        if len(ids) > _LONGEST:
            break
    return ids[:_LONGEST], labels[:_LONGEST]


def _text() -> tuple[str, ...]:
    """Whatever it is asked and answers, for its tokenizer."""
    rng = np.random.default_rng(1)
    turns = [turn for name in SYSTEMS.values() for _ in range(100) for turn in _turns(rng, name) if not turn.is_cut]
    lines = [line for turn in turns for line in (turn.question, turn.answer)]
    return (*lines, *(("system", "user", "assistant", *SYSTEMS, *_RAW) * 50))


def train(folder: Path, *, steps: int = STEPS) -> None:
    """Write the trained checkpoint into ``folder``."""
    text = _text()
    checkpoints.smollm(folder, shape=SHAPE, text=text)
    tokenizer, rng = smollm_tokenizer(text), np.random.default_rng(0)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        if step % _POOL == 0:  # rows of like length share a batch
            pool = sorted((_encoded(rng, tokenizer) for _ in range(BATCH * _POOL)), key=lambda row: len(row[0]))
            order = rng.permutation(_POOL)
        at = int(order[step % _POOL]) * BATCH
        ids, labels = _batch(pool[at : at + BATCH])
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    weights: dict[str, Any] = {
        name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    checkpoints.write_safetensors(folder / "model.safetensors", weights, "F32")


def _batch(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, int64 ``(n, longest)``; causal attention never looks at what pads."""
    width = max(len(ids) for ids, _ in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for row, (known, learned) in enumerate(rows):
        ids[row, : len(known)], labels[row, : len(known)] = torch.tensor(known), torch.tensor(learned)
    return ids, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "small_talk"
        train(folder)
        converters.convert(folder, output, quant="q8_0", force=True)


if __name__ == "__main__":
    main()
