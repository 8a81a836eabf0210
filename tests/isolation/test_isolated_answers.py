"""A model in a process of its own answers as one in this process: everything of the API, and its errors."""

import asyncio
import contextlib
import gc
import inspect
import logging
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_llama
from edge_llama import (
    Answer,
    BusyError,
    ContextFullError,
    DeadlineError,
    InputError,
    Message,
    Model,
    OptionError,
    SessionError,
    Timings,
)
from edge_llama.isolation.remote import IsolatedModel
from edge_llama.isolation.service import Service

CALL = r'\{"name": "add", "parameters": \{"a": 2, "b": 3\}\}'


def without_times(answer: Answer) -> Answer:
    """The answer with its counts, but not the seconds that it took."""
    counts = {each.name: getattr(answer.timings, each.name) for each in fields(Timings) if each.type in ("int", int)}
    return replace(answer, timings=Timings(**counts))


ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seed": {"temperature": 1.5, "seed": 7},
    "schema": {
        "temperature": 0,
        "json_schema": {"type": "object", "properties": {"a": {"enum": [1, 22, "ü"]}}, "required": ["a"]},
    },
    "grammar": {"grammar": 'start: "a" | "bcd"'},
    "stop": {"temperature": 0, "regex": "one two three", "stop": iter(["tw"])},
    "logprobs": {"temperature": 0, "logprobs": 3},
    "logprobs of the chosen": {"temperature": 1, "seed": 1, "logprobs": 0},
    "bias": {"temperature": 0, "logit_bias": {np.int64(300): 50.0, 301: np.float32(49)}},
    "penalties": {"temperature": 0, "repetition_penalty": 1.3, "penalty_window": 20},
    "template": {"temperature": 0, "template_variables": {"date_string": "26 Jul 2024"}},
}


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_equal(name: str, plain: Model, isolated: Model) -> None:
    options = {"max_tokens": 24, "seed": 5, **ASKED[name]}
    options["stop"] = stops = list(options.get("stop", ()))
    messages = [Message("system", name), Message("user", "Say it 🦙.")]
    expected = plain.answer(messages, **options).result()
    generation = isolated.answer(messages, **{**options, "stop": iter(stops)})
    pieces = list(generation)
    answer = generation.result()
    assert without_times(answer) == replace(without_times(expected), timings=without_times(answer).timings)
    assert answer.timings.generated_tokens == expected.timings.generated_tokens
    assert answer.timings.prompt_tokens == expected.timings.prompt_tokens
    assert pieces[-1].finish_reason == expected.finish_reason
    assert expected.tokens
    assert generation.timings.generation_seconds > 0


def test_raw_prompts_and_their_pieces_are_equal(plain: Model, isolated: Model) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "logprobs": 1}
    assert list(isolated.generate("Once upon", **options)) == list(plain.generate("Once upon", **options))
    ids = [plain.tokenizer.control_tokens["<|eot_id|>"], *plain.tokenizer.encode("Once upon")]
    assert list(isolated.generate(ids, **options)) == list(plain.generate(ids, **options))
    assert isolated.location == plain.location


def test_tools_are_called_here(plain: Model, isolated: Model) -> None:
    called = []

    def add(a: int, b: int) -> int:
        """Add.

        Args:
            a: One.
            b: Another.
        """
        called.append((a, b))
        return a + b

    answers = [
        model.chat().run_tools("2 + 3?", max_rounds=1, tools=[add], regex=CALL, temperature=0)
        for model in (plain, isolated)
    ]
    assert called == [(2, 3), (2, 3)]
    one, other = (answer.tool_calls[0] for answer in answers)
    assert (one.name, one.arguments) == (other.name, other.arguments) == ("add", {"a": 2, "b": 3})
    assert answers[0].finish_reason == answers[1].finish_reason == "tool_calls"


def test_a_tool_is_called_that_must_be(plain: Model, isolated: Model) -> None:
    tool = {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {}}}
    options: dict[str, Any] = {"tools": [tool], "temperature": 0, "max_tokens": 30}
    calls = [
        model.answer([Message("user", "Go")], tool_choice="required", **options).result().tool_calls
        for model in (plain, isolated)
    ]
    assert [call.name for call in calls[1]] == [call.name for call in calls[0]]
    assert calls[1][0].name == "add"


def test_texts_are_embedded(plain: Model, isolated: Model, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["one", "another text 🦙", "word " * 300]
    vectors = isolated.embed(tuple(texts))
    assert "pooling by mean" in caplog.text
    assert (vectors.dtype, vectors.shape) == (np.float32, (3, vectors.shape[1]))
    assert np.abs(vectors - plain.embed(texts)).max() < 1e-6
    vectors[0] = 0  # the caller's own
    assert isolated.embed([]).shape == plain.embed([]).shape
    with pytest.raises(ContextFullError, match=r"texts\[1\] needs"):
        isolated.embed(["a", "llama " * isolated.n_ctx])
    for wrong in ("one", ["a", ""], ["a", 5]):
        with pytest.raises(OptionError) as expected:
            plain.embed(wrong)  # type: ignore[arg-type]
        with pytest.raises(OptionError) as caught:
            isolated.embed(wrong)  # type: ignore[arg-type]
        assert str(caught.value) == str(expected.value)


def test_requests_are_awaited(plain: Model, isolated: Model) -> None:
    async def ask(model: Model) -> tuple[str, str]:
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
        one = "".join([piece.text async for piece in model.generate("Once", **options)])
        return one, (await model.generate("Twice", **options)).text

    assert asyncio.run(ask(isolated)) == asyncio.run(ask(plain))

    async def leave() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(isolated.generate("x", regex=".*"), 0.05)  # type: ignore[arg-type]

    asyncio.run(leave())
    assert isolated.generate("x", max_tokens=1).result().tokens


def test_deadlines_and_queues_are_told(tiny: Path, isolated: Model) -> None:
    with pytest.raises(DeadlineError):
        isolated.generate("x", regex=".*", deadline=0.05).result()
    with edge_llama.open(tiny, isolate=True, n_ctx=1024, max_running=1, max_queued=1) as model:
        held = [model.generate("x", regex=".*")]
        next(held[0])
        held.append(model.generate("x"))
        with pytest.raises(BusyError) as caught:
            model.generate("x")
        assert (caught.value.running, caught.value.queued, caught.value.max_queued) == (1, 1, 1)
        stats = model.stats()
        assert (stats.running, stats.queued, stats.cells) == (1, 1, 1024)


def test_images_are_seen(bundle: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (2, 60, 90, 3)).astype(np.uint8)
    options: dict[str, Any] = {"n_ctx": 2048, "kv_format": "f32", "flash_attention": False, "threads": 1}
    options["max_tiles"] = 1
    found = []
    for isolate in (False, True):
        with edge_llama.open(bundle, isolate=isolate, **options) as model:
            chat = model.chat(temperature=0, max_tokens=12)
            answers = [
                chat.send("What?", images=[noise[0]]).result(),
                chat.send("And this?", images=[noise[1], noise[0]]).result(),
            ]
            counts = (model.count_tokens(chat.messages), model.image_tokens(edge_llama.Image.open(noise[0])))
            chat.save(tmp_path / f"{isolate}.session")
            found.append((list(map(without_times, answers)), counts, chat.messages, model.vision))
    assert found[0] == found[1]
    assert [answer.timings.tiles for answer in found[1][0]] == [1, 1]  # the first picture is known by then
    with edge_llama.open(bundle, isolate=True, **options) as model:
        chat = model.load_chat(tmp_path / "False.session")
        assert (chat.messages, chat.reread_reason) == (found[0][2], None)


def test_sessions_go_from_one_to_the_other(plain: Model, isolated: Model, tmp_path: Path) -> None:
    chat = isolated.chat(temperature=0, max_tokens=8)
    chat.send("First").result()
    fork = chat.fork()
    chat.save(tmp_path / "a.session")
    del chat
    assert fork.send("Second").result().timings.cached_tokens > 10
    loaded = plain.load_chat(tmp_path / "a.session", temperature=0, max_tokens=8)
    assert loaded.reread_reason is None
    expected = loaded.send("Third").result()
    loaded.save(tmp_path / "b.session")
    again = isolated.load_chat(tmp_path / "a.session", temperature=0, max_tokens=8)
    answer = again.send("Third").result()
    assert answer.text == expected.text
    assert answer.timings.cached_tokens >= expected.timings.cached_tokens > 10
    assert again.messages == isolated.load_chat(tmp_path / "b.session").messages
    (tmp_path / "a.session").write_bytes(b"edgelses")
    with pytest.raises(SessionError, match=r"a\.session"):
        isolated.load_chat(tmp_path / "a.session")


REFUSED: dict[str, Callable[[Model], object]] = {
    "an option": lambda model: model.generate("x", top_k=-1),
    "an unknown one": lambda model: model.generate("x", tempo=1),  # type: ignore[call-arg]
    "a bias": lambda model: model.generate("x", logit_bias={10**6: 1.0}),
    "a grammar": lambda model: model.generate("x", grammar="start: ("),
    "a schema": lambda model: model.generate("x", json_schema={"type": "nothing"}),
    "a prompt too long": lambda model: model.generate("a b " * 3000),
    "an empty one": lambda model: model.answer([Message("user", "word " * 4000)]),
    "no message": lambda model: model.answer(["x"]),  # type: ignore[list-item]
    "a surrogate": lambda model: model.generate("\ud800"),
    "a token that there is none of": lambda model: model.generate([1 << 30]),
    "no tokens": lambda model: model.generate([]),
    "a tool format": lambda model: model.answer([Message("user", "x")], tool_format="morse"),
    "images": lambda model: model.chat().send("x", images=[np.zeros((8, 8, 3), np.uint8)]),
    "a count": lambda model: model.count_tokens([Message("user", "word " * 30_000)], n_ctx=100),
    "a session": lambda model: model.load_chat("/there/is/none.session"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_equal(name: str, plain: Model, isolated: Model) -> None:
    told = []
    for model in (plain, isolated):
        with pytest.raises(InputError) as caught:
            REFUSED[name](model)
        told.append((caught.type, str(caught.value), vars(caught.value)))
    assert told[0] == told[1]


def test_a_context_that_is_full_carries_both_numbers(isolated: Model) -> None:
    with pytest.raises(ContextFullError) as caught:
        isolated.answer([Message("user", "a b c d " * 900)])
    assert caught.value.needed > caught.value.n_ctx == 2048


def test_functions_over_logits_are_refused_by_name(isolated: Model) -> None:
    with pytest.raises(OptionError, match="logits_processor is a Python function: it can't be called"):
        isolated.generate("x", logits_processor=lambda _tokens, logits: logits)


def test_facts_are_equal(plain: Model, isolated: Model) -> None:
    for name in ("n_ctx", "context", "choice", "placement", "vision_placement", "threads", "identity", "vision"):
        assert getattr(isolated, name) == getattr(plain, name), name
    assert (isolated.artifact.path, isolated.artifact.name) == (plain.artifact.path, plain.artifact.name)
    assert isolated.artifact.metadata() == plain.artifact.metadata()
    assert isolated.sampling({"seed": 1}) == plain.sampling({"seed": 1})
    messages = [Message("system", "Ü"), Message("user", "🦙 <|eot_id|>")]
    assert isolated.count_tokens(messages) == plain.count_tokens(messages)


def test_the_vocabulary_is_equal(plain: Model, isolated: Model) -> None:
    ours, theirs = isolated.tokenizer, plain.tokenizer
    assert (ours.n_vocab, ours.bos, ours.special_texts) == (theirs.n_vocab, theirs.bos, theirs.special_texts)
    assert tuple(map(list, ours.frame)) == tuple(map(list, theirs.frame))
    assert ours.control_tokens == theirs.control_tokens
    assert [ours.piece(at) for at in range(ours.n_vocab)] == [theirs.piece(at) for at in range(ours.n_vocab)]
    assert [ours.is_end(at) for at in range(ours.n_vocab)] == [theirs.is_end(at) for at in range(ours.n_vocab)]
    text = "A tokenizer <|eot_id|> 🦙\n\n  x"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text, {}) == theirs.encode(text, {})
    assert ours.encode_parts([text, 5, -3, "b"]) == theirs.encode_parts([text, 5, -3, "b"])
    assert ours.least_tokens(text) == theirs.least_tokens(text)
    assert dict(ours.control_tokens_of("<|eot_id|>")) == dict(theirs.control_tokens_of("<|eot_id|>"))
    messages = [Message("user", "Hello <|eot_id|>")]
    assert isolated.template.tokens(messages) == plain.template.tokens(messages)


def test_it_is_called_from_many_threads(plain: Model, isolated: Model) -> None:
    prompts = [f"Caller {at} says" for at in range(8)]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 30, "logprobs": 2}
    expected = [plain.generate(prompt, **options).result() for prompt in prompts]
    found: dict[int, list[Answer]] = {at: [] for at in range(8)}

    def call(at: int) -> None:
        for _ in range(3):
            chat = isolated.chat()
            cancelled = chat.send("Something", regex=".*", max_tokens=60)
            next(cancelled)
            found[at].append(isolated.generate(prompts[at], **options).result())
            cancelled.close()

    threads = [threading.Thread(target=call, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, answers in found.items():
        assert [each.text for each in answers] == [expected[at].text] * 3
        chosen = [entry.logprob for entry in expected[at].logprobs]
        for answer in answers:  # among others rows are added up in another order
            assert [entry.logprob for entry in answer.logprobs] == pytest.approx(chosen, abs=1e-3)


def test_cancel_stops_an_answer_and_what_waits(isolated: Model) -> None:
    running, waiting = (isolated.generate("Once upon", temperature=0, regex=".*") for _ in range(2))
    next(running)
    waiting.cancel()
    running.cancel()
    assert running.result().finish_reason == waiting.result().finish_reason == "cancelled"
    assert 0 < len(running.result().tokens) < 2000
    assert waiting.is_cancelled
    assert isolated.generate("x", max_tokens=1).result().tokens  # the engine is free


def test_a_dropped_answer_stops(isolated: IsolatedModel) -> None:
    running = isolated.generate("Once upon", temperature=0, regex=".*")
    next(running)
    del running
    assert isolated.generate("x", max_tokens=1).result().timings.generated_tokens == 1
    assert not isolated._worker._child._asked  # nothing is kept of what is over


def test_a_chat_that_is_gone_is_forgotten_there(plain: Model, isolated: IsolatedModel) -> None:
    service = Service(plain, -1)
    service.call("share", {"owner": [1, "a"], "other": [2, ""]})
    assert service._owner((1, "later")).tag == "a"
    assert {service._owner((at, "")) for at in (1, 2)} == set(service._owners.values())
    service.forget([1, 3])
    assert list(service._owners) == [2]
    chat = isolated.chat(max_tokens=1)
    chat.send("x").result()
    number, _ = isolated._worker.owner(chat.cache_owner)
    del chat
    gc.collect()
    assert list(isolated._worker._gone) == [number]
    isolated.stats()  # whatever is asked next takes it along
    assert not isolated._worker._gone


def test_finish_and_shortening_are_told_here(isolated: Model) -> None:
    told: list[object] = []
    chat = isolated.chat(when_full="drop-oldest", on_shortened=told.append, max_tokens=200, temperature=0, regex="ok")
    for _ in range(4):
        chat.send("word " * 500).result()
    assert told
    isolated.answer([Message("user", "x")], max_tokens=1, on_finish=told.append).result()
    assert isinstance(told[-1], Answer)


def test_warnings_are_logged_here(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "edge_llama"), edge_llama.open(tiny, isolate=True, n_ctx=256) as model:
        assert model.n_ctx == 256
    assert f"{tiny}: 256 tokens of context (as asked)" in caplog.text


def test_every_public_call_of_a_model_is_done_by_the_child_or_needs_no_engine() -> None:
    """Who adds a call to Model decides here whether it works on what a model of its own process has too."""
    public = {name for name, _ in inspect.getmembers(Model) if not name.startswith("_")}
    works_on_others = {
        "adapter_set",
        "chat",
        "close",
        "embed",
        "image_tokens",
        "load_chat",
        "location",
        "n_ctx",
        "pooling",
        "resume_chat",
        "sampling",
        "sampling_defaults",
        "template",
    }
    assert public - works_on_others <= set(vars(IsolatedModel))
