"""llm, unchanged, runs this machine's models by the plugin in this distribution."""

import asyncio
import json
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import llm
import numpy as np
import pytest
from click.testing import CliRunner
from ggufs import rewritten
from llm.cli import cli
from model_stores import environment
from trained import PARIS, SUNNY, weather

import edge_llama
from edge_llama.files.gguf import Value, ValueType

JAPAN, TOKYO = "What is the capital of Japan?", "The capital of Japan is Tokyo."
GREEDY = {"temperature": 0}
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n"
)


@pytest.fixture(scope="module", autouse=True)
def home(small_talk: Path, tool_llama: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose models are one that chats, one that calls tools, one that thinks, and one that sees images."""
    home = tmp_path_factory.mktemp("home")
    models = home / "models"
    models.mkdir()
    (models / "talk.gguf").symlink_to(small_talk)
    (models / "tools.gguf").symlink_to(tool_llama)
    (models / "sees").symlink_to(bundle)
    rewritten(small_talk, models / "thinks.gguf", fields={"tokenizer.chat_template": Value(ValueType.STRING, THINKS)})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment(home), "LLM_USER_PATH": str(home / "llm")}.items():
            patch.setenv(name, value)
        patch.setenv("EDGE_LLAMA_MODELS", str(models))
        yield home


@pytest.fixture
def talk() -> llm.Model:
    return llm.get_model("edge-llama/talk")


def test_the_distribution_registers_it() -> None:
    assert [each.value for each in entry_points(group="llm") if each.name == "edge-llama"] == ["edge_llama.llm_plugin"]


def test_models_have_the_names_that_the_list_of_models_shows() -> None:
    names = [model.model_id for model in llm.get_models() if model.model_id.startswith("edge-llama/")]
    assert names == [
        "edge-llama/smollm2",
        "edge-llama/talk",
        "edge-llama/thinks",
        "edge-llama/tools",
        "edge-llama/sees",
    ]
    assert "SmolLM2" in llm.get_model_aliases(), "another package's, untouched"
    assert {model.model_id for model in llm.get_embedding_models()} >= set(names)


def test_an_answer_streams_and_has_its_counts(talk: llm.Model) -> None:
    response = talk.prompt(JAPAN, **GREEDY)
    pieces = list(response)
    assert len(pieces) > 3
    assert "".join(pieces) == response.text() == TOKYO
    assert talk.prompt(JAPAN, stream=False, **GREEDY).text() == TOKYO
    usage = response.usage()
    assert usage.input > 10
    assert usage.output >= len(pieces)
    assert response.response_json == {"finish_reason": "stop", "notes": []}


def test_a_conversation_goes_on_from_the_cache(talk: llm.Model) -> None:
    conversation = talk.conversation()
    first = conversation.prompt("Who are you?", system="You are Captain Hook.", **GREEDY)
    assert first.text() == "I am Captain Hook."
    second = conversation.prompt("And of France?", **GREEDY)
    assert "Paris" in second.text()
    details = second.usage().details
    assert details
    assert details["cached_tokens"] >= first.usage().input
    alone = llm.get_model("edge-llama/talk").prompt("And of France?", **GREEDY)
    alone.text()
    assert alone.usage().input < second.usage().input


def test_options_are_those_of_sampling(talk: llm.Model) -> None:
    assert talk.prompt(JAPAN, **GREEDY, max_tokens=3).text() == "The capital of"
    assert talk.prompt(JAPAN, **GREEDY, stop=["capital"]).text() == "The "
    assert re.fullmatch("[a-d]{4}", talk.prompt(JAPAN, regex="[a-d]{4}", seed=3).text())
    with pytest.raises(edge_llama.OptionError, match="top_p is 3"):
        talk.prompt(JAPAN, top_p=3).text()


def test_a_schema_is_kept(talk: llm.Model) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert json.loads(talk.prompt(JAPAN, schema=schema).text())["a"] in (1, 22)


def test_tools_are_called_and_their_results_answered() -> None:
    chain = llm.get_model("edge-llama/tools").chain(PARIS, tools=[weather], options={**GREEDY, "max_tokens": 120})
    assert chain.text() == SUNNY
    call, answer = chain._responses
    assert [(each.name, each.arguments) for each in call.tool_calls()] == [("weather", {"city": "Paris"})]
    assert [message.role for message in answer.prompt.messages] == ["user", "assistant", "tool"]


def test_thoughts_are_no_part_of_the_text() -> None:
    response = llm.get_model("edge-llama/thinks").prompt(JAPAN, **GREEDY, thinking_budget=4, regex="[0-9]")
    events = list(response.stream_events())
    thoughts = "".join(event.chunk for event in events if event.type == "reasoning")
    assert thoughts
    assert response.text().isdigit()
    details = response.usage().details
    assert details
    assert details["reasoning_tokens"] >= 4


def test_images_go_to_models_that_see(talk: llm.Model) -> None:
    image = llm.Attachment(content=edge_llama.Image.open(np.zeros((20, 20, 3), np.uint8)).data)
    sees = llm.get_model("edge-llama/sees")
    response = sees.prompt("What is it?", attachments=[image], max_tokens=2)
    response.text()
    blind = sees.prompt("What is it?", max_tokens=2)
    blind.text()
    assert response.usage().input > blind.usage().input
    with pytest.raises(ValueError, match="does not support attachments"):
        talk.prompt("What is it?", attachments=[image])


def test_in_an_event_loop() -> None:
    async def ask() -> tuple[list[str], str]:
        model = llm.get_async_model("edge-llama/talk")
        pieces = [piece async for piece in model.prompt(JAPAN, **GREEDY)]
        return pieces, await model.prompt(JAPAN, stream=False, **GREEDY).text()

    pieces, whole = asyncio.run(ask())
    assert len(pieces) > 3
    assert "".join(pieces) == whole == TOKYO


def test_texts_are_embedded(small_talk: Path) -> None:
    texts = ["one", "another one"]
    vectors = list(llm.get_embedding_model("edge-llama/talk").embed_multi(texts))
    with edge_llama.open(small_talk) as model:
        np.testing.assert_allclose(vectors, model.embed(texts), atol=1e-5)


def test_its_command_line_asks_and_goes_on(home: Path) -> None:
    first = run("-m", "edge-llama/talk", JAPAN, "-o", "temperature", "0", "-o", "stop", "Tokyo")
    assert first == "The capital of Japan is \n"
    assert run("-c", "And of Italy?", "-o", "temperature", "0") == "The capital of Italy is Rome.\n"
    assert json.loads(run("embed", "-m", "edge-llama/talk", "-c", "one"))


def test_an_error_is_a_line(home: Path) -> None:
    result = CliRunner().invoke(cli, ["-m", "edge-llama/talk", "word " * 9000])
    assert result.exit_code == 1
    assert "the context holds 8,192" in result.output


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout
