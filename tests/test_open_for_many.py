"""Options of ``open`` and of requests that are about many callers, and what a model tells of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal

import converters
import edge_llama
from edge_llama.backends.base import Setting
from edge_llama.backends.registry import engine_of, open_artifact
from edge_llama.errors import BusyError, DeadlineError, OptionError
from edge_llama.planning.memory import context_size
from edge_llama.planning.plan import needed

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 4}


@pytest.fixture(scope="module")
def path(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "tiny.gguf"
    converters.convert(llama3, path, quant="f32")
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(path, n_ctx=256, kv_format="f32", threads=1, max_running=1, max_queued=2) as model:
        yield model


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_running": 0}, "max_running is 0, expected a whole number from 1 to 64"),
        ({"max_running": 65}, "max_running is 65"),
        ({"max_running": 2.5}, "max_running is 2.5"),
        ({"max_queued": -1}, "max_queued is -1"),
        ({"max_queued": True}, "max_queued is True"),
        ({"kv_cells": 1}, "kv_cells is 1"),
        ({"kv_cells": 255}, "kv_cells is 255, less than the 256 tokens of context"),
        ({"kv_cells": 2**31 - 1}, "need .* bytes beside the model, .* are available; at most .* fit"),
        ({"deterministic": 1}, "deterministic is 1, expected True or False"),
        ({"cache_bytes": -1}, "cache_bytes is -1"),
        ({"cache_dir": 5}, "cache_dir"),
        ({"cache_dir": "a\0b"}, "cache_dir"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_a_weight_is_read(path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        edge_llama.open(path, n_ctx=256, **options)
    assert caught.value.exit_code == 2


def test_cells_cost_what_they_take(path: Path) -> None:
    artifact = open_artifact(path)
    need = needed(engine_of(artifact), artifact.shape, Setting(), max_running=8)
    one, many = (context_size(artifact, 256, need, 10**9, kv_cells=cells) for cells in (None, 1024))
    assert (one.n_cells, many.n_cells, many.n_ctx) == (256, 1024, 256)
    assert many.bytes == 4 * one.bytes
    assert "KV cache of 1,024 cells for all conversations" in str(many)


def test_an_engine_of_one_conversation_has_no_cells_to_ask_for(onnx_folder: Path) -> None:
    with refusal(OptionError, "kv_cells is 512, but this model's engine holds one conversation at a time"):
        edge_llama.open(onnx_folder, n_ctx=256, kv_cells=512)
    with edge_llama.open(onnx_folder, n_ctx=256, kv_cells=256, max_running=4) as model:
        assert model.stats().max_running == 1


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), True, "soon", []], ids=str)
def test_a_deadline_is_a_number_of_seconds(model: edge_llama.Model, deadline: Any) -> None:
    with pytest.raises(OptionError, match=r"deadline is .*, expected seconds, more than 0"):
        model.generate("Hello", deadline=deadline)
    with pytest.raises(OptionError, match="deadline"):
        model.chat().send("Hello", deadline=deadline)


def test_a_late_answer_is_an_error_and_the_chat_is_as_it_was(model: edge_llama.Model) -> None:
    chat = model.chat(deadline=1e-9)
    with pytest.raises(DeadlineError):
        chat.send("Hello").result()
    assert chat.messages == []
    assert chat.send("Hello", deadline=60, **GREEDY).result().tokens
    with pytest.raises(DeadlineError):
        model.generate("Hello", deadline=1e-9).result()


def test_too_many_are_told_at_once(model: edge_llama.Model) -> None:
    def held(_ids: object, logits: Any) -> Any:
        """Keeps the engine within the first answer until all have asked."""
        nonlocal caught
        if caught is None:
            waiting.extend(model.generate(f"{number}", **GREEDY) for number in range(2))
            with pytest.raises(BusyError) as caught:
                model.generate("one more")
        return logits

    waiting: list[edge_llama.Generation] = []
    caught: Any = None
    assert model.generate("Hello", logits_processor=held, **GREEDY).result().tokens
    assert (caught.value.running, caught.value.queued, caught.value.max_queued) == (1, 2, 2)
    assert caught.value.exit_code == 1
    assert all(each.result().tokens for each in waiting)


def test_a_prompt_that_is_prefilled_again_says_from_where_on(model: edge_llama.Model) -> None:
    begin, end = "Yesterday the ", " went down to the sea and " + "sang " * 20
    model.generate(f"{begin}old man{end}", **GREEDY).result()
    diverged = model.generate(f"{begin}young cat{end}", **GREEDY).result().timings.diverged
    assert diverged is not None
    cached, wanted = diverged.cached.lstrip(), diverged.wanted.lstrip()
    assert (cached[:3], wanted[:5]) == ("old", "young")
    assert f"old man{end}".startswith(cached)
    assert f"young cat{end}".startswith(wanted)
    again = model.generate(f"{begin}old man{end} more", **GREEDY).result()
    assert again.timings.cached_tokens > diverged.position
    assert again.timings.diverged is None or again.timings.diverged.position > diverged.position
