"""With ``deterministic`` an answer is the same, to the last bit of its logprobs, whatever else the model is asked."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import converters
import edge_llama
from edge_llama.sampling.logprobs import TokenLogprobs

COMMON = "Tell me of the sea. " * 12
PROMPTS = [COMMON + end for end in ("", "And of ships.", "And of ships. And of whales.", "And of " * 20)]


@pytest.fixture(scope="module")
def quantized(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels for quantized weights round by the number of rows."""
    path = tmp_path_factory.mktemp("quantized") / "a.gguf"
    converters.convert(llama3, path, quant="q4_k_m")
    return path


def logprobs(model: edge_llama.Model, prompt: str) -> Sequence[TokenLogprobs]:
    return model.generate(prompt, temperature=0, max_tokens=12, logprobs=2).result().logprobs


def alone(path: Path, prompt: str, *, n_batch: int) -> Sequence[TokenLogprobs]:
    with edge_llama.open(path, n_ctx=512, n_batch=n_batch, deterministic=True) as model:
        return logprobs(model, prompt)


@pytest.mark.parametrize("n_batch", [16, 512])
def test_answers_are_those_of_a_model_that_was_asked_nothing_else(quantized: Path, n_batch: int) -> None:
    expected = {prompt: alone(quantized, prompt, n_batch=n_batch) for prompt in PROMPTS}
    with edge_llama.open(quantized, n_ctx=512, n_batch=n_batch, deterministic=True) as model:
        asked = PROMPTS * 3
        with ThreadPoolExecutor(6) as pool:
            given = list(pool.map(lambda prompt: logprobs(model, prompt), asked))
        assert all(each == expected[prompt] for prompt, each in zip(asked, given, strict=True))


def test_whole_slices_of_a_prompt_are_reused(quantized: Path) -> None:
    with edge_llama.open(quantized, n_ctx=512, n_batch=16, deterministic=True) as model:
        first = model.generate(PROMPTS[1], max_tokens=4).result().timings
        again = model.generate(PROMPTS[2], max_tokens=4).result().timings
    assert first.cached_tokens == 0
    assert again.cached_tokens > 0
    assert again.cached_tokens % 16 == 0


def test_one_is_served_at_a_time(quantized: Path) -> None:
    with edge_llama.open(quantized, n_ctx=512, deterministic=True, max_running=4) as model:
        running = [model.generate(COMMON, temperature=0, max_tokens=40) for _ in range(3)]
        next(running[0])
        assert model.stats().running == 1
        assert model.stats().queued == 2
        assert len({each.result().text for each in running}) == 1


def test_it_must_be_true_or_false(quantized: Path) -> None:
    with pytest.raises(edge_llama.OptionError, match="deterministic is 1, expected True or False"):
        edge_llama.open(quantized, deterministic=1)  # type: ignore[arg-type]
