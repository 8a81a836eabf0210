"""pydantic-ai, unchanged, against the server in each API that it speaks: a tool's way, streams, typed answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import trained
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.run import AgentRunResult
from serving import Served, serve

from edge_llama.server.pool import Pool

KEY = "no key is asked for"
SETTINGS: Any = {"temperature": 0, "max_tokens": 64}


class City(BaseModel):
    """A city, of which there are two."""

    name: Literal["Rome", "Bonn"]
    is_large: bool


@pytest.fixture(scope="module")
def tool_server(tool_llama: Path) -> Iterator[Served]:
    """A model that was trained to call ``weather``, and to tell what it says."""
    with serve(Pool([str(tool_llama)], {"n_ctx": 512, "threads": 1}, isolate=False)) as server:
        yield server


@asynccontextmanager
async def chat(served: Served) -> AsyncIterator[Model]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        yield OpenAIChatModel(served.name, provider=OpenAIProvider(openai_client=client))


@asynccontextmanager
async def responses(served: Served) -> AsyncIterator[Model]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        yield OpenAIResponsesModel(served.name, provider=OpenAIProvider(openai_client=client))


@asynccontextmanager
async def messages(served: Served) -> AsyncIterator[Model]:
    async with AsyncAnthropic(base_url=served.url, api_key=KEY) as client:
        yield AnthropicModel(served.name, provider=AnthropicProvider(anthropic_client=client))


ModelOf = Callable[[Served], AbstractAsyncContextManager[Model]]
every_api = pytest.mark.parametrize("model_of", [chat, responses, messages])


@every_api
def test_a_tool_is_called_and_its_result_told(tool_server: Served, model_of: ModelOf) -> None:
    async def told() -> AgentRunResult[str]:
        async with model_of(tool_server) as model:
            return await Agent(model, tools=[trained.weather], model_settings=SETTINGS).run(trained.PARIS)

    result = asyncio.run(told())
    parts = [part for message in result.all_messages() for part in message.parts]
    calls = [part.args_as_dict() for part in parts if isinstance(part, ToolCallPart)]
    results = [part.content for part in parts if isinstance(part, ToolReturnPart)]
    assert (calls, results) == ([{"city": "Paris"}], [trained.weather("Paris")])
    assert result.output == trained.SUNNY
    assert result.usage.requests == 2
    assert result.usage.output_tokens > 0


@every_api
def test_text_comes_as_a_stream(tool_server: Served, model_of: ModelOf) -> None:
    async def streamed() -> list[str]:
        async with model_of(tool_server) as model:
            agent = Agent(model, tools=[trained.weather], model_settings=SETTINGS)
            async with agent.run_stream(trained.HELLO) as running:
                return [text async for text in running.stream_text(delta=True, debounce_by=None)]

    texts = asyncio.run(streamed())
    assert len(texts) > 1
    assert "".join(texts) == "Hi {x}!"


@pytest.mark.parametrize(
    ("model_of", "kind"),
    [
        (chat, NativeOutput),
        (chat, ToolOutput),
        (responses, NativeOutput),
        (responses, ToolOutput),
        (messages, ToolOutput),  # the client asks for a schema only from models whose names it knows
    ],
)
def test_an_answer_has_the_type_that_was_asked_for(
    tool_server: Served, model_of: ModelOf, kind: Callable[[type[City]], Any]
) -> None:
    """By a JSON schema, and by a tool that has to be called."""

    async def typed() -> object:
        async with model_of(tool_server) as model:
            return (await Agent(model, output_type=kind(City), model_settings=SETTINGS).run(trained.HELLO)).output

    assert isinstance(asyncio.run(typed()), City)
