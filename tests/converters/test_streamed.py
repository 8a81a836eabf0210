"""A checkpoint's text tower run layer by layer, against transformers in float32."""

import resource
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import checkpoints
import families
import llama4
import numpy as np
import pytest
import torch
from llama4_reference import Reference
from numpy.typing import NDArray
from PIL import Image
from refusals import refusal
from transformers import AutoModelForCausalLM, Llama4ForCausalLM

import converters
from converters.architectures import for_config
from converters.evidence.layers import run_layer
from converters.evidence.needs import needed_bytes
from converters.evidence.streamed import StreamedTower
from converters.evidence.tower import Tower
from converters.sources import open_checkpoint
from edge_llama.errors import CheckpointError, InputError, OptionError, OutputError
from edge_llama.fidelity.source import LogitSource

Floats = NDArray[np.float32]
Make = Callable[[Path], Path]
TOLERANCE = 2e-4
"""Of logits, as a part of how far they spread (their standard deviation): sums in float32, in another order."""
CHECKPOINTS: dict[str, Make] = {
    "llama 2": checkpoints.llama2,
    "llama 3": checkpoints.llama3,
    "smollm2": checkpoints.smollm,
    **families.FAMILIES,
    "scout": llama4.text_only,
    "maverick": lambda folder: llama4.text_only(folder, **llama4.SMALL_MAVERICK),
    "odd": lambda folder: llama4.text_only(folder, **llama4.ODD),
    "two experts": lambda folder: llama4.text_only(folder, num_experts_per_tok=2),
}
FORMS: dict[str, Make] = {"dense": checkpoints.llama3, "scout": llama4.text_only, "mixtral": families.mixtral}
LENGTHS = (40, 3, 600)
"""The last is longer than what attends at once."""


@pytest.fixture
def chunks(rng: np.random.Generator) -> list[NDArray[np.int64]]:
    return [rng.integers(3, 250, length) for length in LENGTHS]


def reference(folder: Path, chunks: Sequence[NDArray[np.int64]]) -> list[Floats]:
    """transformers' logits of each chunk, attention computed step by step."""
    kind = Llama4ForCausalLM if "llama4" in (folder / "config.json").read_text("utf-8") else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids.tolist()]), use_cache=False).logits[0].numpy() for ids in chunks]


def streamed(source: LogitSource, chunks: Sequence[NDArray[np.int64]], step: int = 150) -> list[Floats]:
    """The logits of each chunk, asked for a few rows at a time."""
    source.prepare(chunks)
    return [
        np.concatenate([source.logits(number, at, min(at + step, len(ids))) for at in range(0, len(ids), step)])
        for number, ids in enumerate(chunks)
    ]


def assert_equal(found: Sequence[Floats], expected: Sequence[Floats]) -> None:
    spread = np.concatenate(expected).std()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < TOLERANCE * spread


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_equal_transformers_and_nothing_stays(
    name: str, tmp_path: Path, chunks: list[NDArray[np.int64]]
) -> None:
    folder, states = CHECKPOINTS[name](tmp_path / "checkpoint"), tmp_path / "states"
    states.mkdir()
    told: list[tuple[int, int]] = []
    with StreamedTower(open_checkpoint(folder), threads=1, folder=states) as tower:
        tower.prepare(chunks, lambda done, total: told.append((done, total)))
        assert told == sorted(told)
        assert told[-1][0] == told[-1][1]
        assert_equal(streamed(tower, chunks), reference(folder, chunks))
        assert not list(states.iterdir()), "a kill leaves nothing"


def test_a_picture_takes_the_place_of_negative_ids(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = llama4.scout(tmp_path / "checkpoint")
    model = Reference(folder)
    picture = Image.fromarray(rng.integers(0, 256, (70, 130, 3), dtype=np.uint8))
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]}]
    ids, pixels = model.inputs(question, [picture])
    assert pixels is not None
    features = model.image_features(pixels).reshape(-1, model.model.config.text_config.hidden_size)
    patch = model.model.config.image_token_id
    given = np.array([-1 - at if token == patch else token for at, token in enumerate(ids)])
    assert (given < 0).sum() == len(features) > 0
    plain = np.array(ids[:5])
    with StreamedTower(open_checkpoint(folder), threads=1, folder=tmp_path) as tower:
        tower.prepare([plain, given], features=[None, features])
        assert_equal(
            [tower.logits(0, 0, len(plain)), tower.logits(1, 0, len(ids))],
            [model.logits(ids[:5]), model.logits(ids, pixels)],
        )
        with refusal(InputError, rf"{len(features)} ids stand for images' embeddings of 64 values, but \[0, 64\] are"):
            tower.prepare([given])
        with refusal(InputError, r"of 64 values, but \[\d+, 40\] are"):
            tower.prepare([given], features=[features[:, :40]])


def test_other_chunks_may_follow(tmp_path: Path, chunks: list[NDArray[np.int64]]) -> None:
    folder = checkpoints.llama3(tmp_path / "checkpoint")
    with StreamedTower(open_checkpoint(folder), threads=1, folder=tmp_path) as tower:
        streamed(tower, chunks[:1])
        others = [chunks[0][::-1].copy(), chunks[1]]
        assert_equal(streamed(tower, others), reference(folder, others))
        with refusal(OptionError, "no token"):
            tower.prepare([])
        with refusal(OptionError, "before chunks were given"):
            tower.logits(0, 0, 1)


@pytest.mark.parametrize("make", [checkpoints.llama3, llama4.text_only, families.gemma3])
@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_a_gguf_file_runs_as_what_its_numbers_are_worth(
    make: Make, quant: str, tmp_path: Path, chunks: list[NDArray[np.int64]]
) -> None:
    file = tmp_path / "model.gguf"
    converters.convert(make(tmp_path / "checkpoint"), file, quant=quant)
    converters.convert(file, tmp_path / "back", to="safetensors", quant="f32")
    with StreamedTower(open_checkpoint(file), threads=1, folder=tmp_path) as tower:
        assert tower.name == "model.gguf"
        assert_equal(streamed(tower, chunks), reference(tmp_path / "back", chunks))


@pytest.mark.parametrize("name", FORMS)
def test_a_layer_alone_does_what_it_does_among_the_others(
    name: str, tmp_path: Path, chunks: list[NDArray[np.int64]]
) -> None:
    checkpoint = open_checkpoint(FORMS[name](tmp_path / "checkpoint"))
    seen: dict[int, list[tuple[Floats, Floats]]] = {}

    def on_layer(layer: int, chunk: int, before: Floats, after: Floats) -> None:
        assert chunk == len(seen.setdefault(layer, []))
        seen[layer].append((before.copy(), after.copy()))

    with StreamedTower(checkpoint, threads=1, folder=tmp_path, on_layer=on_layer) as tower:
        tower.prepare(chunks)
    for layer, pairs in seen.items():
        found = run_layer(checkpoint, layer, [before for before, _ in pairs], threads=1)
        for ours, (_, after) in zip(found, pairs, strict=True):
            assert np.array_equal(ours, after)
    for (_, after), (before, _) in zip(seen[0], seen[1], strict=True):
        assert np.array_equal(after, before)


@pytest.mark.parametrize("name", FORMS)
def test_every_matrix_of_every_layer_is_told_what_it_multiplies(
    name: str, tmp_path: Path, chunks: list[NDArray[np.int64]]
) -> None:
    checkpoint = open_checkpoint(FORMS[name](tmp_path / "checkpoint"))
    counts: dict[str, int] = {}
    columns: dict[str, int] = {}

    def on_input(tensor: str, rows: Floats, expert: int | None) -> None:
        assert (expert is not None) == ("_exps" in tensor)
        counts[tensor] = counts.get(tensor, 0) + len(rows)
        columns[tensor] = rows.shape[1]

    with StreamedTower(checkpoint, threads=1, folder=tmp_path, on_input=on_input) as tower:
        tower.prepare(chunks)
    weights = {weight.tensor.name: weight.tensor for weight in for_config(checkpoint).weights(checkpoint)}
    matrices = {name for name, tensor in weights.items() if name.startswith("blk.") and len(tensor.shape) > 1}
    assert set(counts) == matrices
    assert columns == {name: weights[name].columns for name in matrices}
    used = 2 if name == "mixtral" else 1
    for tensor, count in counts.items():
        assert count == sum(LENGTHS) * (used if "_exps" in tensor else 1)


def test_a_damaged_weight_is_named_and_so_is_a_layer_that_overflows(tmp_path: Path) -> None:
    for value, expected in ((np.nan, "model.layers.1.mlp.up_proj.weight"), (3e37, "layer 1: what it gives is NaN")):
        folder = checkpoints.llama2(tmp_path / f"{value}", shape=checkpoints.Shape(kv_heads=4))
        shape = checkpoints.Shape(kv_heads=4)
        n_vocab = Tower(open_checkpoint(folder), threads=1, longest=1).hp.n_vocab
        tensors = checkpoints.weights(shape, n_vocab, tied=False, seed=0)
        tensors["model.layers.1.mlp.up_proj.weight"][:] = value
        checkpoints.write_weights(folder, tensors, "F32", 1)
        states = tmp_path / f"states {value}"
        states.mkdir()
        with StreamedTower(open_checkpoint(folder), threads=1, folder=states) as tower:
            with refusal(CheckpointError, expected, folder):
                tower.prepare([np.arange(3, 40)])
            assert not list(states.iterdir())


def test_what_doesnt_fit_is_refused_before_a_layer_runs(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoints.llama2(tmp_path / "checkpoint"))
    with StreamedTower(checkpoint, threads=1, folder=tmp_path) as tower:
        with refusal(OptionError, "a chunk has 4,097 tokens, but .* has a context of 4,096"):
            tower.prepare([np.full(4097, 5)])
        with refusal(OptionError, "there is no token to run"):
            tower.prepare([])
        with refusal(InputError, f"token {tower.n_vocab} is past the vocabulary of {tower.n_vocab} tokens"):
            tower.prepare([np.array([3, tower.n_vocab])])
        with refusal(OptionError, "asked for before"):
            tower.logits(0, 0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_disk_with_too_little_room_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(checkpoints.llama2(tmp_path / "checkpoint"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    need = needed_bytes(Tower(checkpoint, threads=1, longest=100), [100]).disk
    with (
        StreamedTower(checkpoint, threads=1, folder=tmp_path) as tower,
        refusal(OutputError, f"1,000 bytes are free, but hidden states need {need:,}", tmp_path),
    ):
        tower.prepare([np.full(100, 5)])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_disk_that_is_full_meanwhile_is_an_error_and_nothing_stays(tmp_path: Path) -> None:
    """The kernel refuses the write at a chosen byte, as a full disk does."""
    checkpoint = open_checkpoint(checkpoints.llama2(tmp_path / "checkpoint"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with StreamedTower(checkpoint, threads=1, folder=tmp_path) as tower:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with refusal(OutputError, "hidden states: File too large", tmp_path):
                tower.prepare([np.full(100, 5)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
