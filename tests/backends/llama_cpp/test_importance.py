"""What llama.cpp's evaluation callback gives, against files that llama-imatrix wrote of the same models and text."""

from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import ggufs
import imatrix_files
import numpy as np
import pytest
from refusals import refusal
from suite import shared

from edge_llama.backends.registry import open_artifact
from edge_llama.errors import ArtifactError
from edge_llama.fidelity.packed import Packed, packed
from edge_llama.planning.plan import plan_engine
from quant.importance import read_importance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_llama.backends.llama_cpp.importance import Collector
    from edge_llama.backends.llama_cpp.text import LlamaCppTower

SUMMED = 640 * 2.0**-24
"""How far a sum of 640 positive float32 may be off, by rounding alone: llama-imatrix adds them up one by one."""
COMPUTED = 2e-3
"""Beside it, where the processor is another one than the files are of: kernels add up in other orders."""


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared(tmp_path_factory, "imatrix-mixture.gguf", imatrix_files.mixture)


@contextmanager
def collecting(path: Path, n_ctx: int = imatrix_files.N_CTX) -> "Iterator[tuple[Collector, Packed]]":
    """What collects importance of a model, and the text in chunks for it."""
    plan = plan_engine(open_artifact(path), {"n_ctx": n_ctx, "max_running": 1, "n_batch": 16, "device": "cpu"})
    with closing(cast("LlamaCppTower", plan.open(1))) as tower, closing(tower.importance(n_ctx)) as collector:
        ids = np.asarray(tower.tokenizer.encode(imatrix_files.text()), np.int64)
        yield collector, packed([ids], n_ctx, bos=tower.tokenizer.bos)


@pytest.mark.parametrize("name", ["dense", "mixture"])
def test_sums_and_counts_are_those_of_llama_imatrix(name: str, small_talk: Path, mixture: Path) -> None:
    """Matrices for all tokens, and experts: which, how often, and each one's own sums."""
    reference = read_importance(imatrix_files.FOLDER / f"{name}.gguf")
    with collecting({"dense": small_talk, "mixture": mixture}[name]) as (collector, cut):
        for chunk in cut.chunks:
            collector.read(chunk.tolist())
        found = collector.sums
    assert reference.n_chunks == len(cut.chunks)
    assert found.keys() == reference.entries.keys()
    for tensor, (sums, counts) in reference.entries.items():
        assert np.array_equal(found[tensor][1], counts), tensor
        assert found[tensor][0].shape == sums.shape
        scale = sums.mean(axis=-1, keepdims=True)
        np.testing.assert_array_less(abs(found[tensor][0] - sums), (SUMMED + COMPUTED) * (sums + scale) + 1e-30)


def test_chunks_are_read_one_by_one_from_an_empty_context(mixture: Path) -> None:
    with collecting(mixture) as (collector, cut):
        alone = []
        for chunk in cut.chunks[:2]:
            collector.sums = {}
            collector.read(chunk.tolist())
            alone.append(collector.sums)
        collector.sums = {}
        for chunk in cut.chunks[:2]:
            collector.read(chunk.tolist())
        for name, (sums, counts) in collector.sums.items():
            assert np.array_equal(sums, alone[0][name][0] + alone[1][name][0])
            assert np.array_equal(counts, alone[0][name][1] + alone[1][name][1])


def test_what_interrupts_the_callback_comes_through_and_nothing_is_added(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception can't cross llama.cpp's C: it is raised after it, and the next chunk is read as ever."""
    from edge_llama.backends.llama_cpp import importance  # noqa: PLC0415 - loads native code

    whole, calls = importance._of_all, 0

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    with collecting(mixture) as (collector, cut):
        collector.read(cut.chunks[0].tolist())
        before = dict(collector.sums)
        monkeypatch.setattr(importance, "_of_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collector.read(cut.chunks[1].tolist())
        assert calls == 5
        assert collector.sums == before
        collector.read(cut.chunks[1].tolist())
        counted = collector.sums["blk.0.attn_q.weight"][1]
    assert counted.tolist() == [2 * imatrix_files.N_CTX]


def test_a_model_whose_values_are_not_finite_is_refused(mixture: Path, tmp_path: Path) -> None:
    def huge(info: ggufs.TensorInfo, raw: np.ndarray) -> np.ndarray:
        if info.name == "blk.1.attn_norm.weight":
            return np.full_like(raw.view(np.float32), 3e38).view(np.uint8)
        return raw

    damaged = ggufs.rewritten(mixture, tmp_path / "huge.gguf", data=huge)
    with (
        collecting(damaged) as (collector, cut),
        refusal(ArtifactError, "is NaN or infinite", damaged, "blk.1.attn_q.weight"),
    ):
        collector.read(cut.chunks[0].tolist())
