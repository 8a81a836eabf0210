"""What a model thinks is a part of its own: in pieces, answers, messages and prompts, within a budget, before a schema.

What the model says is chosen for it, token by token, by a function over its logits: all else is real.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_llama
from edge_llama import Message, OptionError

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)
CLOSED = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OPEN = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
QUESTION = "What is the capital of Japan?"


@pytest.fixture(params=[False, True], ids=["here", "isolated"], scope="module")
def is_isolated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def opened(path: Path, template: str, **options: Any) -> edge_llama.Model:
    return edge_llama.open(path, n_ctx=512, chat_template=template, **options)


@pytest.fixture(scope="module")
def closed(small_talk: Path) -> Iterator[edge_llama.Model]:
    """A model that begins to think by itself, or doesn't."""
    with opened(small_talk, CLOSED) as model:
        yield model


@pytest.fixture(scope="module")
def open_(small_talk: Path) -> Iterator[edge_llama.Model]:
    """One whose prompt has it think."""
    with opened(small_talk, OPEN) as model:
        yield model


def says(model: edge_llama.Model, text: str, *, ends: bool = True) -> edge_llama.LogitsProcessor:
    """Has the model say this, and then end, or go on as it likes."""
    said = model.tokenizer.encode(text)
    said += [model.tokenizer.control_tokens["<|im_end|>"]] if ends else []
    begun: list[int] = []

    def processor(token_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        begun[:] = begun or [len(token_ids)]
        at = len(token_ids) - begun[0]
        if at >= len(said):
            return logits
        forced = np.full_like(logits, -np.inf)
        forced[said[at]] = 0
        return forced

    return processor


def test_thoughts_are_no_part_of_the_answers_text(closed: edge_llama.Model) -> None:
    chat = closed.chat(temperature=0)
    said = says(closed, "<think>\nTokyo < Kyoto, I think.\n</think>\n\nIt is Tokyo.")
    pieces = list(chat.send(QUESTION, logits_processor=said))
    assert "".join(piece.text for piece in pieces) == "It is Tokyo."
    assert "".join(piece.thinking for piece in pieces) == "Tokyo < Kyoto, I think."
    assert not any(piece.text and piece.thinking for piece in pieces)
    message = chat.messages[-1]
    assert (message.content, message.thinking) == ("It is Tokyo.", "Tokyo < Kyoto, I think.")


def test_a_prompt_that_ends_with_the_tag_has_the_model_think(open_: edge_llama.Model) -> None:
    said = says(open_, "Hm.</think>Tokyo")
    answer = open_.chat(temperature=0).send(QUESTION, logits_processor=said, logprobs=0).result()
    assert (answer.thinking, answer.text, answer.finish_reason) == ("Hm.", "Tokyo", "stop")
    assert 0 < answer.timings.thinking_tokens < answer.timings.generated_tokens
    assert len(answer.logprobs) == len(answer.tokens)


def test_who_does_not_think_loses_nothing(closed: edge_llama.Model) -> None:
    for text in ("Tokyo, <think> not.", "  <thin", "<"):
        answer = closed.chat(temperature=0).send(QUESTION, logits_processor=says(closed, text)).result()
        assert (answer.text, answer.thinking) == (text, "")
    plain = closed.chat(temperature=0).send(QUESTION).result()
    assert "Tokyo" in plain.text


def test_a_template_that_knows_of_no_thinking_has_tags_as_text(small_talk: Path) -> None:
    with edge_llama.open(small_talk, n_ctx=512) as model:
        answer = model.chat(temperature=0).send(QUESTION, logits_processor=says(model, "<think>a</think>b")).result()
        assert (answer.text, answer.thinking) == ("<think>a</think>b", "")


def test_an_answer_that_ends_within_thoughts_is_all_thought(open_: edge_llama.Model) -> None:
    said = says(open_, "Hm, Tokyo or Kyoto, who knows </thin", ends=False)
    count = len(open_.tokenizer.encode("Hm, Tokyo or Kyoto, who knows </thin"))
    answer = open_.chat(temperature=0).send(QUESTION, logits_processor=said, max_tokens=count).result()
    assert (answer.thinking, answer.text) == ("Hm, Tokyo or Kyoto, who knows </thin", "")
    assert answer.finish_reason == "length"


def test_stop_strings_stop_answers_and_no_thoughts(open_: edge_llama.Model) -> None:
    said = says(open_, "Not END yet.</think>Tokyo END more")
    answer = open_.chat(temperature=0).send(QUESTION, logits_processor=said, stop=["END"]).result()
    assert (answer.thinking, answer.text, answer.stop_string) == ("Not END yet.", "Tokyo ", "END")


@pytest.mark.parametrize("budget", [0, 3])
def test_a_budget_ends_thoughts_and_the_answer_follows(open_: edge_llama.Model, budget: int) -> None:
    said = says(open_, "Hm, Tokyo or Kyoto, who knows, who can tell", ends=False)
    options: dict[str, Any] = {"logits_processor": said} if budget else {}
    answer = open_.chat(temperature=0).send(QUESTION, thinking_budget=budget, max_tokens=40, **options).result()
    thought = open_.tokenizer.encode(answer.thinking) if answer.thinking else []
    assert len(thought) == budget
    recorded = open_.chat(temperature=0).send(QUESTION, thinking_budget=budget, max_tokens=20, logprobs=0).result()
    assert [each.token_id for each in recorded.logprobs[: len(recorded.tokens)]] == list(recorded.tokens)
    assert answer.timings.thinking_tokens >= budget
    assert len(answer.tokens) > answer.timings.thinking_tokens
    ended = open_.chat(temperature=0).send(QUESTION, thinking_budget=500, logits_processor=says(open_, "a</think>b"))
    assert (ended.result().thinking, ended.result().text) == ("a", "b")


def test_a_schema_holds_for_what_follows_thoughts(open_: edge_llama.Model, closed: edge_llama.Model) -> None:
    options: dict[str, Any] = {"json_schema": {"enum": ["Tokyo", "Kyoto"]}, "temperature": 0, "max_tokens": 60}
    said = says(open_, "Well {</think>", ends=False)
    answer = open_.chat().send(QUESTION, logits_processor=said, **options).result()
    assert (answer.thinking, answer.text in ('"Tokyo"', '"Kyoto"')) == ("Well {", True)
    limited = open_.chat().send(QUESTION, thinking_budget=4, **options).result()
    assert limited.text in ('"Tokyo"', '"Kyoto"')
    assert limited.timings.thinking_tokens >= 4
    ends = says(open_, "Well")  # the end of the turn, before there was an answer
    assert open_.chat().send(QUESTION, logits_processor=ends, **options).result().finish_reason == "length"
    bias = {open_.tokenizer.control_tokens["<|im_end|>"]: 1e4}
    assert open_.chat().send(QUESTION, logit_bias=bias, **options).result().text in ('"Tokyo"', '"Kyoto"')
    at_once = closed.chat().send(QUESTION, **options).result()
    assert (at_once.thinking, at_once.text in ('"Tokyo"', '"Kyoto"')) == ("", True)


def test_what_has_to_fit_from_the_first_token_is_all_answer(closed: edge_llama.Model) -> None:
    answer = closed.chat().send(QUESTION, regex="<think>a</think>b", thinking_budget=0).result()
    assert (answer.text, answer.thinking) == ("<think>a</think>b", "")


def test_a_summary_is_no_thought(open_: edge_llama.Model) -> None:
    chat = open_.chat(temperature=0, max_tokens=8)
    for _ in range(3):
        chat.send(QUESTION, thinking_budget=0).result()
    told = chat.compact()
    assert told is not None
    assert told.summarized


def test_the_template_gets_thoughts_and_leaves_them_out_as_it_wants(closed: edge_llama.Model) -> None:
    said = [Message("user", "a"), Message("assistant", "b", thinking="c"), Message("user", "d")]
    without = [Message("user", "a"), Message("assistant", "b"), Message("user", "d")]
    assert closed.count_tokens(said) == closed.count_tokens(without)
    assert closed.count_tokens(said[:2]) > closed.count_tokens(without[:2])


def test_messages_keep_thoughts_as_json() -> None:
    message = Message("assistant", "b", thinking="c")
    data = message.to_json()
    assert data == {"role": "assistant", "content": "b", "reasoning_content": "c"}
    assert Message.from_json(data) == message
    assert Message.from_json({"role": "assistant", "content": "b", "reasoning_content": None}).thinking == ""
    for wrong in (1, ["c"]):
        with pytest.raises(OptionError, match="thinking"):
            Message.from_json({**data, "reasoning_content": wrong})
    with pytest.raises(OptionError, match="only the assistant's may"):
        Message("user", "b", thinking="c")


def test_a_cancelled_thought_is_kept_with_what_was_said(open_: edge_llama.Model) -> None:
    chat = open_.chat(temperature=0)
    generation = chat.send(QUESTION, logits_processor=says(open_, "Hm.</think>Tokyo is it", ends=False))
    for piece in generation:
        if piece.text:
            break
    generation.close()
    assert chat.messages[-1].thinking == "Hm."


def test_thoughts_cross_processes(small_talk: Path) -> None:
    with opened(small_talk, OPEN, isolate=True) as model:
        chat = model.chat(temperature=0)
        answer = chat.send(QUESTION, thinking_budget=4, max_tokens=30).result()
        assert answer.thinking
        assert answer.timings.thinking_tokens >= 4
        assert chat.messages[-1].thinking == answer.thinking
        assert chat.send(QUESTION, thinking_budget=0, max_tokens=5).result().tokens


@pytest.mark.parametrize("budget", [-1, 1.5, "many", True])
def test_a_budget_is_a_whole_number(open_: edge_llama.Model, budget: Any) -> None:
    with pytest.raises(OptionError, match="thinking_budget"):
        open_.chat().send(QUESTION, thinking_budget=budget)
