"""Importance matrices from a checkpoint's streamed layers, against what torch sees in transformers' own layers."""

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import families
import llama4
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, Llama4ForCausalLM

import converters
from converters.architectures import for_config
from converters.evidence.importance import Squares, add_chunks, of_checkpoint
from converters.evidence.streamed import StreamedTower
from converters.sources import open_checkpoint
from edge_llama.backends.llama_cpp.text import LlamaCppTower
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate
from edge_llama.errors import InputError
from edge_llama.planning.plan import plan_engine
from quant.importance import read_importance, write_importance

Ids = NDArray[np.int64]
TOLERANCE = 1e-4
"""Of a sum of squares, as a part of it, beside a millionth of the largest."""
TEXT = (
    "The tide comes in twice a day, and the harbour master writes down when. He has done so for forty years, in books "
    "with grey covers; the first of them, he says, were his father's. What does one learn from such a list? That the "
    "sea is late when the wind is from the east, and early when nobody is looking. "
)


def hooked(model: Any, names: dict[str, str], chunks: Sequence[Ids]) -> dict[str, tuple[NDArray[np.float64], int]]:
    """The sums of squares and the rows of every linear layer's input, float64, by the names in GGUF."""
    found: dict[str, tuple[NDArray[np.float64], int]] = {}

    def hook(name: str, _module: Any, given: tuple[torch.Tensor, ...]) -> None:
        rows = given[0].reshape(-1, given[0].shape[-1]).double()
        sums, count = found.get(name, (np.zeros(rows.shape[-1]), 0))
        found[name] = sums + rows.square().sum(dim=0).numpy(), count + len(rows)

    for name, module in model.named_modules():
        if f"{name}.weight" in names and ".layers." in name and "norm" not in name:
            module.register_forward_pre_hook(partial(hook, names[f"{name}.weight"]))
    with torch.no_grad():
        for ids in chunks:
            model(input_ids=torch.tensor([ids.tolist()]), use_cache=False)
    return found


def gguf_names(folder: Path) -> dict[str, str]:
    checkpoint = open_checkpoint(folder)
    return {name: place.gguf for name, place in for_config(checkpoint).places_in(checkpoint).items()}


def assert_equal(sums: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    assert np.all(np.abs(sums - expected) <= TOLERANCE * expected + 1e-6 * expected.max())


def load(folder: Path) -> Any:
    kind = Llama4ForCausalLM if "llama4" in (folder / "config.json").read_text("utf-8") else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def test_smollm2_says_and_sums_what_transformers_does(smollm2: Path, tmp_path: Path) -> None:
    ids = np.array(AutoTokenizer.from_pretrained(smollm2)(TEXT)["input_ids"] * 2, np.int64)
    chunks, model = [ids[:120], ids[20:60]], load(smollm2)
    assert len(ids) > 120
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([chunk.tolist()])).logits[0].numpy() for chunk in chunks]
    expected = hooked(model, gguf_names(smollm2), chunks)
    del model
    checkpoint = open_checkpoint(smollm2)
    found = of_checkpoint(checkpoint, chunks, threads=1, folder=tmp_path, datasets=["a text"])
    assert set(found.entries) == set(expected)
    assert (found.n_chunks, found.datasets) == (2, ("a text",))
    for name, (sums, counts) in found.entries.items():
        assert counts.tolist() == [expected[name][1]] == [160]
        assert_equal(sums[0], expected[name][0])
    with StreamedTower(checkpoint, threads=1, folder=tmp_path) as tower:
        tower.prepare(chunks)
        for number, theirs in enumerate(logits):
            ours = tower.logits(number, 0, len(theirs))
            assert np.abs(ours - theirs).max() < 1e-4 * theirs.std()


@pytest.mark.parametrize("make", [checkpoints.llama3, families.gemma3, llama4.text_only, families.mixtral])
def test_dense_parts_of_every_form_are_summed(
    make: Callable[[Path], Path], tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = make(tmp_path / "checkpoint")
    chunks = [rng.integers(3, 250, length) for length in (40, 17)]
    expected = hooked(load(folder), gguf_names(folder), chunks)
    found = of_checkpoint(open_checkpoint(folder), chunks, threads=1, folder=tmp_path)
    assert expected
    for name, (sums, count) in expected.items():
        assert found.entries[name].counts.tolist() == [count]
        assert_equal(found.entries[name].sums[0], sums)
    for name in set(found.entries) - set(expected):
        assert "_exps." in name or "ffn_gate_inp" in name


def test_each_expert_is_summed_over_the_tokens_that_chose_it(tmp_path: Path, rng: np.random.Generator) -> None:
    """transformers computes all experts of Llama 4 for all tokens: what was not chosen is weighed by nothing there."""
    folder = llama4.text_only(tmp_path / "checkpoint")
    chunks = [rng.integers(3, 250, length) for length in (40, 17)]
    model, seen = load(folder), dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]()

    def hook(name: str, module: Any, given: tuple[torch.Tensor, ...]) -> None:
        rows = given[0].view(module.num_experts, -1, module.hidden_size)
        gate, up = torch.bmm(rows, module.gate_up_proj).chunk(2, dim=-1)
        counts = rows.abs().sum(dim=2).gt(0).sum(dim=1).numpy()
        for part, value in (("gate", rows), ("down", up * module.act_fn(gate))):
            key = f"blk.{name}.ffn_{part}_exps.weight"
            sums, count = seen.get(key, (np.zeros(1), np.zeros(1, np.int64)))
            seen[key] = sums + value.double().square().sum(dim=1).numpy(), count + counts

    for name, module in model.named_modules():
        if name.endswith("feed_forward.experts"):
            module.register_forward_pre_hook(partial(hook, re.findall(r"\d+", name)[0]))
    with torch.no_grad():
        for ids in chunks:
            model(input_ids=torch.tensor([ids.tolist()]), use_cache=False)
    found = of_checkpoint(open_checkpoint(folder), chunks, threads=1, folder=tmp_path)
    assert len(seen) == 8
    for name, (sums, counts) in seen.items():
        entry = found.entries[name]
        assert entry.counts.tolist() == counts.tolist()
        assert entry.counts.sum() == sum(map(len, chunks))
        assert_equal(entry.sums, sums)
        if "gate" in name:
            assert np.array_equal(found.entries[name.replace("gate", "up")].sums, entry.sums)


@pytest.mark.parametrize("make", [checkpoints.llama3, llama4.text_only, families.mixtral, families.gemma3])
def test_llama_cpp_finds_the_same_in_the_converted_file(
    make: Callable[[Path], Path], tmp_path: Path, rng: np.random.Generator
) -> None:
    """Experts by their counts too; its cache is in f16, so that sums are equal to some thousandths."""
    folder, file = make(tmp_path / "checkpoint"), tmp_path / "model.gguf"
    converters.convert(folder, file, quant="f32")
    chunks = [rng.integers(3, 250, 64) for _ in range(3)]
    ours = of_checkpoint(open_checkpoint(folder), chunks, threads=1, folder=tmp_path)
    tower = plan_engine(open_artifact(locate(file)), {"n_ctx": 64, "max_running": 1, "tune": False}).open(1)
    assert isinstance(tower, LlamaCppTower)
    try:
        with closing(tower.importance(64)) as collector:
            for ids in chunks:
                collector.read(ids.tolist())
    finally:
        tower.close()
    assert set(collector.sums) == set(ours.entries)
    for name, (sums, counts) in collector.sums.items():
        assert np.abs(counts - ours.entries[name].counts).sum() <= 2  # a token between two experts
        found = ours.entries[name].sums
        assert np.abs(found - sums).sum() < (0.005 if "exps" not in name else 0.03) * sums.sum()


def test_chunks_may_come_some_at_a_time_and_an_error_leaves_the_sums_as_they_were(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    checkpoint = open_checkpoint(llama4.text_only(tmp_path / "checkpoint"))
    chunks = [rng.integers(3, 250, length) for length in (40, 17, 25)]
    whole, squares = of_checkpoint(checkpoint, chunks, threads=1, folder=tmp_path), Squares(checkpoint)
    add_chunks(squares, checkpoint, chunks[:1], threads=1, folder=tmp_path)
    with pytest.raises(InputError, match="past the vocabulary"):
        add_chunks(squares, checkpoint, [np.array([3, 10**6])], threads=1, folder=tmp_path)
    add_chunks(squares, checkpoint, chunks[1:], threads=1, folder=tmp_path)
    for name, (sums, counts) in squares.entries().items():
        assert np.array_equal(counts, whole.entries[name].counts)
        assert np.allclose(sums, whole.entries[name].sums, rtol=1e-6)


def test_what_is_found_is_written_and_read(tmp_path: Path, rng: np.random.Generator) -> None:
    checkpoint = open_checkpoint(llama4.text_only(tmp_path / "checkpoint"))
    chunks = [rng.integers(3, 250, 200) for _ in range(2)]
    found = of_checkpoint(checkpoint, chunks, threads=1, folder=tmp_path, datasets=["a", "b"])
    write_importance(tmp_path / "imatrix.gguf", found)
    read = read_importance(tmp_path / "imatrix.gguf")
    assert (read.n_chunks, read.chunk_size, read.datasets) == (2, 200, ("a", "b"))
    for name, (sums, counts) in found.entries.items():
        assert np.array_equal(read.entries[name].sums, sums)
        assert np.array_equal(read.entries[name].counts, counts)
    read.check({weight.tensor.name: weight.tensor.shape for weight in for_config(checkpoint).weights(checkpoint)})
