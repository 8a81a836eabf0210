"""``on_progress`` of ``open``: how much of the weights is loaded, here and in a process of its own."""

from pathlib import Path

import psutil
import pytest

import edge_llama
from edge_llama import OptionError

OPTIONS: edge_llama.OpenOptions = {"n_ctx": 256, "threads": 1}
isolated_or_not = pytest.mark.parametrize("isolate", [False, True])


@isolated_or_not
def test_it_goes_from_nothing_to_all(isolate: bool, small_talk: Path) -> None:
    told: list[float] = []
    with edge_llama.open(small_talk, isolate=isolate, on_progress=told.append, **OPTIONS) as model:
        assert len(told) > 10
        assert told == sorted(told)
        assert 0 <= told[0] < 0.5
        assert told[-1] == 1
        count = len(told)
        assert model.generate("The capital of Japan is", max_tokens=2, temperature=0).result().tokens
    assert len(told) == count


@isolated_or_not
def test_what_it_raises_ends_the_opening(isolate: bool, small_talk: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(part: float) -> None:
        if part > 0.2:
            raise StoppedError(part)

    before = psutil.Process().children()
    with pytest.raises(StoppedError, match=r"0\.[2-9]"):
        edge_llama.open(small_talk, isolate=isolate, on_progress=stop, **OPTIONS)
    assert psutil.Process().children() == before
    with edge_llama.open(small_talk, isolate=isolate, **OPTIONS) as model:
        assert model.generate("The capital of Japan is", max_tokens=2, temperature=0).result().tokens


def test_an_onnx_model_tells_nothing(onnx_folder: Path) -> None:
    told: list[float] = []
    edge_llama.open(onnx_folder, on_progress=told.append).close()
    assert not told


def test_what_is_no_function_is_refused(small_talk: Path) -> None:
    with pytest.raises(OptionError, match=r"on_progress is 1, expected a function"):
        edge_llama.open(small_talk, on_progress=1)  # type: ignore[arg-type]
