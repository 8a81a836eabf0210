"""Real engines, many callers: with float weights each greedy answer is the one that it would be alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import CAPITAL

import converters
import edge_llama

CALLERS = 9
MARGIN = 1e-3
"""Of logits in float32: how the rows of a batch are summed up moves them by less."""


@pytest.fixture(scope="module")
def tiny(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("equal") / "tiny.gguf"
    converters.convert(llama3, path, quant="f32")
    return path


@pytest.fixture(scope="module")
def roomy(tiny: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(tiny, n_ctx=512, kv_cells=4096, kv_format="f32", max_running=CALLERS, threads=1) as model:
        yield model


def prompts(count: int, words: int, rng: np.random.Generator) -> list[str]:
    known = ["sea", "hill", "old", "and", "then", "under", "light", "seven", "the", "walks"]
    return [" ".join(rng.choice(known, int(rng.integers(1, words)))) for _ in range(count)]


def check(found: edge_llama.Answer, alone: edge_llama.Answer) -> None:
    """Equal, or different only from a token on that another came close to."""
    at = next((at for at, pair in enumerate(zip(found.tokens, alone.tokens, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        assert found.tokens == alone.tokens
    else:
        best, second = (entry.logprob for entry in alone.logprobs[at].top[:2])
        assert best - second < MARGIN, f"token {at} of {alone.text!r} differs, its margin is {best - second}"


def test_answers_among_eight_others_are_those_alone(roomy: edge_llama.Model, rng: np.random.Generator) -> None:
    asked = prompts(18, 30, rng)
    options = {"temperature": 0, "max_tokens": 32, "logprobs": 2}
    alone = [roomy.generate(prompt, **options).result() for prompt in asked]
    for at in range(0, len(asked), CALLERS):
        running = [roomy.generate(prompt, **options) for prompt in asked[at : at + CALLERS]]
        for generation, expected in zip(running, alone[at:], strict=False):
            check(generation.result(), expected)


@pytest.mark.parametrize("cache_bytes", [0, None])
def test_where_cells_run_out_answers_wait_or_come_back_and_are_the_same(
    tiny: Path, roomy: edge_llama.Model, cache_bytes: int | None, rng: np.random.Generator
) -> None:
    """Eight callers of 200 positions and more, where there are 512."""
    asked = [f"{number} {text}" for number, text in enumerate(prompts(8, 60, rng))]
    options = {"temperature": 0, "max_tokens": 120, "logprobs": 2}
    alone = [roomy.generate(prompt, **options).result() for prompt in asked]
    with edge_llama.open(tiny, n_ctx=512, kv_format="f32", threads=1, cache_bytes=cache_bytes) as model:
        running = [model.generate(prompt, **options) for prompt in asked]
        for generation, expected in zip(running, alone, strict=True):
            check(generation.result(), expected)
        stats = model._engine.call(model.stats)  # after the step in which the last one ended
        assert stats.running == stats.queued == 0


def test_a_caller_may_use_the_whole_context_beside_others(tiny: Path) -> None:
    with edge_llama.open(tiny, n_ctx=256, kv_format="f32", threads=1) as model:
        whole = model.generate("the sea", temperature=1.0, seed=3, regex="[a-z ]{2000}")
        others = [model.generate(f"{number} old hills", temperature=0, max_tokens=40) for number in range(8)]
        answer = whole.result()
        assert answer.timings.prompt_tokens + len(answer.tokens) == 256 + 1
        assert answer.finish_reason == "length"
        assert all(other.result().tokens for other in others)


def test_deterministic_answers_are_the_same_bytes_whatever_else_is_asked(converted: Path) -> None:
    """With quantized weights, whose kernels round by the size of a batch."""
    long = "Tell me of the old man and the sea. " * 8
    with edge_llama.open(converted, n_ctx=512, deterministic=True, n_batch=64, threads=1) as model:
        options = {"temperature": 0, "max_tokens": 6, "logprobs": 3}
        alone = model.generate(long + CAPITAL, **options).result()
        others = [model.generate(long + text, **options) for text in ("Hello", "And then?", CAPITAL, "x")]
        again = [other.result() for other in others][2]
    assert again.tokens == alone.tokens
    assert again.logprobs == alone.logprobs, "to the last bit"
    assert 0 < again.timings.cached_tokens < again.timings.prompt_tokens


def test_an_engine_of_one_conversation_serves_many_callers_in_turn(onnx_folder: Path) -> None:
    with edge_llama.open(onnx_folder, n_ctx=512, threads=1) as model:
        asked = [f"{number} old hills" for number in range(6)]
        alone = [model.generate(prompt, temperature=0, max_tokens=8).result().tokens for prompt in asked]
        running = [model.generate(prompt, temperature=0, max_tokens=8) for prompt in asked]
        assert [generation.result().tokens for generation in running] == alone
