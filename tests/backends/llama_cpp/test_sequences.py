"""A tower of several sequences: each is as if it were alone, and what they share lies there once."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from one_sequence import OneSequence

import converters
from edge_llama.backends.base import AbortedError, CacheSize, Rows
from edge_llama.backends.llama_cpp.text import LlamaCppTower
from edge_llama.errors import EngineError
from edge_llama.files.gguf_text import GGUFArtifact, read_gguf_text

CLOSE = 1e-4
"""Of logits in float32: other rows in a batch change the order of sums."""
TOKENS = [40 + 7 * at % 200 for at in range(300)]


@pytest.fixture(scope="module")
def artifact(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> GGUFArtifact:
    path = tmp_path_factory.mktemp("sequences") / "tiny.gguf"
    converters.convert(llama3, path, quant="f32")
    return read_gguf_text(path)


def opened(artifact: GGUFArtifact, cache: CacheSize, n_batch: int = 128) -> LlamaCppTower:
    return LlamaCppTower(artifact, cache=cache, threads=1, flash_attention=False, kv_format="f32", n_batch=n_batch)


@pytest.fixture
def tower(artifact: GGUFArtifact) -> Iterator[LlamaCppTower]:
    """Of 256 cells, which is what llama.cpp has at least."""
    with closing(opened(artifact, CacheSize(256, 256, 4))) as tower:
        yield tower


def alone(artifact: GGUFArtifact, tokens: Sequence[int]) -> NDArray[np.float32]:
    """The logits after these tokens."""
    with closing(opened(artifact, CacheSize.of_one(512), 512)) as tower:
        one = OneSequence(tower)
        one.decode(tokens)
        return one.logits()


def check(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=0)


def test_rows_of_several_give_each_its_logits(tower: LlamaCppTower, artifact: GGUFArtifact) -> None:
    batch = [Rows(2, TOKENS[:20]), Rows(0, TOKENS[50:53], needs_logits=False), Rows(3, TOKENS[100:101])]
    found = tower.decode(batch)
    assert [row.index for row in found] == [19, 23]
    check(found[0].values, alone(artifact, TOKENS[:20]))
    check(found[1].values, alone(artifact, TOKENS[100:101]))
    assert [tower.length(number) for number in range(4)] == [3, 0, 20, 1]
    (row,) = tower.decode([Rows(0, TOKENS[53:60])])
    check(row.values, alone(artifact, TOKENS[50:60]))


def test_what_is_shared_takes_its_cells_once_and_each_goes_on(tower: LlamaCppTower, artifact: GGUFArtifact) -> None:
    for at in (0, 100):
        tower.decode([Rows(0, TOKENS[at : at + 100])])
    tower.share(0, 1, 150)
    assert (tower.length(0), tower.length(1)) == (200, 150)
    own = TOKENS[250:300]
    rows = tower.decode([Rows(1, own), Rows(0, [77])])  # 251 cells; without sharing 401
    check(rows[0].values, alone(artifact, [*TOKENS[:150], *own]))
    check(rows[1].values, alone(artifact, [*TOKENS[:200], 77]))
    tower.cut(0, 0)
    (row,) = tower.decode([Rows(1, [77])])
    check(row.values, alone(artifact, [*TOKENS[:150], *own, 77]))


def test_without_cells_nothing_is_appended_and_room_can_be_had(tower: LlamaCppTower, artifact: GGUFArtifact) -> None:
    tower.decode([Rows(0, TOKENS[:128])])
    tower.decode([Rows(1, TOKENS[:100])])
    with pytest.raises(EngineError, match="position 128"):
        tower.decode([Rows(0, TOKENS[128:148]), Rows(1, TOKENS[100:120])])
    assert (tower.length(0), tower.length(1)) == (128, 100)
    tower.cut(1, 0)
    (row,) = tower.decode([Rows(0, TOKENS[128:148])])
    check(row.values, alone(artifact, TOKENS[:148]))


def test_one_that_is_stopped_appended_nothing_to_any(tower: LlamaCppTower, artifact: GGUFArtifact) -> None:
    tower.decode([Rows(0, TOKENS[:20]), Rows(1, TOKENS[:30])])
    tower.abort()
    with pytest.raises(AbortedError):
        tower.decode([Rows(0, TOKENS[20:40]), Rows(1, TOKENS[30:40])])
    assert (tower.length(0), tower.length(1)) == (20, 30)
    tower.resume()
    rows = tower.decode([Rows(0, TOKENS[20:40]), Rows(1, TOKENS[30:40])])
    for row in rows:
        check(row.values, alone(artifact, TOKENS[:40]))


def test_one_is_saved_and_loaded_beside_others(tower: LlamaCppTower, artifact: GGUFArtifact) -> None:
    tower.decode([Rows(0, TOKENS[:40]), Rows(1, TOKENS[50:80])])
    kept = tower.save(1)
    assert kept.nbytes == tower.saved_bytes(1)
    tower.cut(1, 0)
    tower.load(3, kept, 30)
    with pytest.raises(EngineError, match="read 0 of"):
        tower.load(2, kept[:-8], 30)
    with pytest.raises(EngineError, match="of a cache"):
        tower.load(2, kept, 29)
    assert [tower.length(number) for number in range(4)] == [40, 0, 0, 30]
    rows = tower.decode([Rows(3, [7]), Rows(0, [7]), Rows(2, [7])])
    for row, tokens in zip(rows, ([*TOKENS[50:80], 7], [*TOKENS[:40], 7], [7]), strict=True):
        check(row.values, alone(artifact, tokens))


def test_a_cut_goes_back_and_on(tower: LlamaCppTower, artifact: GGUFArtifact) -> None:
    tower.decode([Rows(0, TOKENS[:60]), Rows(1, TOKENS[:60])])
    tower.cut(0, 20)
    rows = tower.decode([Rows(0, TOKENS[100:110]), Rows(1, [5])])
    check(rows[0].values, alone(artifact, [*TOKENS[:20], *TOKENS[100:110]]))
    check(rows[1].values, alone(artifact, [*TOKENS[:60], 5]))


def test_there_are_no_more_sequences_than_rows_in_a_batch(artifact: GGUFArtifact) -> None:
    """llama.cpp would end the process."""
    with closing(opened(artifact, CacheSize(256, 256, 16), n_batch=4)) as tower:
        assert tower.n_sequences == 4
        assert len(tower.decode([Rows(number, [5]) for number in range(4)])) == 4
