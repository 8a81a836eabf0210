"""A coding agent's session sent to a server, in OpenAI's and in Anthropic's form, whole or as streams.

A turn has failed if its status is none of success, its stream breaks off before its last event, or its prompt was cut
without a word: ``usage`` says less than the prompt has.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import httpx
from agent_session import Request, Step

from edge_llama import Message

MAX_TOKENS = 32
"""Of each answer."""
_DONE = "[DONE]"
_KEPT = {"cache_control": {"type": "ephemeral"}}


@dataclass(frozen=True, slots=True)
class Told:
    """What a response says. Numbers are -1 where it says none."""

    prompt_tokens: int = -1
    cached_tokens: int = -1
    text: str = ""
    calls: tuple[str, ...] = ()
    """Names of the tools that are called."""
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of a request, and in how many seconds."""

    status: int
    told: Told
    seconds: float
    problem: str = ""
    """What was wrong with the response, if anything."""

    @property
    def read_tokens(self) -> int:
        """Tokens of the prompt that were not known."""
        return self.told.prompt_tokens - self.told.cached_tokens

    def failure(self, expected: int) -> str:
        """Why the turn failed, or ''. Its prompt has ``expected`` tokens."""
        said = self.told.prompt_tokens
        return self.problem or ("" if said == expected else f"usage says {said:,} tokens of {expected:,}")


class Api(Protocol):
    """How an API says it."""

    path: str

    def body(self, request: Request) -> dict[str, Any]:
        """The request's own fields."""

    def told(self, body: dict[str, Any]) -> Told:
        """By a whole response."""

    def told_by(self, events: Iterable[dict[str, Any] | str]) -> Told:
        """By the data of a stream's events."""


class OpenAIChat:
    """``/v1/chat/completions`` as agents use it."""

    path = "/v1/chat/completions"

    def body(self, request: Request) -> dict[str, Any]:
        tools = {"tools": list(request.tools), "tool_choice": "auto", "parallel_tool_calls": True}
        messages = [message.to_json() for message in request.messages]
        return {"messages": messages, "store": False, **(tools if request.tools else {})}

    def told(self, body: dict[str, Any]) -> Told:
        choice = body["choices"][0]
        message = choice["message"]
        calls = tuple(call["function"]["name"] for call in message.get("tool_calls") or ())
        prompt, cached = self._usage(body.get("usage"))
        return Told(prompt, cached, message["content"] or "", calls, choice["finish_reason"] is not None)

    def told_by(self, events: Iterable[dict[str, Any] | str]) -> Told:
        prompt, cached, texts, calls, is_finished, is_done = -1, -1, [], [], False, False
        for event in events:
            if isinstance(event, str):
                is_done = event == _DONE
                continue
            if event.get("usage"):
                prompt, cached = self._usage(event["usage"])
            for choice in event["choices"]:
                texts.append(choice["delta"].get("content") or "")
                started = choice["delta"].get("tool_calls") or ()
                calls += [call["function"]["name"] for call in started if call["function"].get("name")]
                is_finished |= choice.get("finish_reason") is not None
        return Told(prompt, cached, "".join(texts), tuple(calls), is_finished and is_done)

    def _usage(self, usage: dict[str, Any] | None) -> tuple[int, int]:
        details = (usage or {}).get("prompt_tokens_details") or {}
        return (usage or {}).get("prompt_tokens", -1), details.get("cached_tokens", -1)


class AnthropicMessages:
    """``/v1/messages`` as agents use it."""

    path = "/v1/messages"

    def body(self, request: Request) -> dict[str, Any]:
        system = [{"type": "text", "text": each.content} for each in request.messages if each.role == "system"]
        others = (message for message in request.messages if message.role != "system")
        messages = [
            self._message(role == "assistant", list(each)) for role, each in groupby(others, lambda it: it.role)
        ]
        functions = [tool["function"] for tool in request.tools]
        tools = [
            {"name": each["name"], "description": each["description"], "input_schema": each["parameters"]}
            for each in functions
        ]
        body = {"system": [*system[:-1], system[-1] | _KEPT], "messages": messages}
        return body | {"metadata": {"user_id": "an agent"}} | ({"tools": tools} if tools else {})

    def _message(self, is_assistant: bool, messages: Sequence[Message]) -> dict[str, Any]:
        blocks = [block for message in messages for block in self._blocks(message)]
        return {"role": "assistant" if is_assistant else "user", "content": blocks}

    def _blocks(self, message: Message) -> Iterator[dict[str, Any]]:
        if message.role == "tool":
            yield {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}
        elif message.content:
            yield {"type": "text", "text": message.content}
        for call in message.tool_calls:
            yield {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}

    def told(self, body: dict[str, Any]) -> Told:
        texts = [block["text"] for block in body["content"] if block["type"] == "text"]
        calls = tuple(block["name"] for block in body["content"] if block["type"] == "tool_use")
        return Told(*self._usage(body["usage"]), "".join(texts), calls, body["stop_reason"] is not None)

    def told_by(self, events: Iterable[dict[str, Any] | str]) -> Told:
        usage: dict[str, Any] = {}
        texts, calls, is_stopped, has_ended = [], [], False, False
        for event in events:
            assert isinstance(event, dict)
            match event["type"]:
                case "message_start":
                    usage |= event["message"]["usage"]
                case "content_block_start" if event["content_block"]["type"] == "tool_use":
                    calls.append(event["content_block"]["name"])
                case "content_block_delta" if event["delta"]["type"] == "text_delta":
                    texts.append(event["delta"]["text"])
                case "message_delta":
                    usage |= event["usage"]
                    is_stopped = event["delta"]["stop_reason"] is not None
                case "message_stop":
                    has_ended = is_stopped
        return Told(*self._usage(usage), "".join(texts), tuple(calls), has_ended)

    def _usage(self, usage: dict[str, Any]) -> tuple[int, int]:
        """``input_tokens`` are those that no cache had: https://platform.claude.com/docs/build-with-claude/prompt-caching."""
        cached = usage.get("cache_read_input_tokens") or 0
        return usage["input_tokens"] + (usage.get("cache_creation_input_tokens") or 0) + cached, cached


OPENAI, ANTHROPIC = OpenAIChat(), AnthropicMessages()


def replay(
    client: httpx.Client, api: Api, steps: Sequence[Step], model: str, *, is_streamed: bool, **more: Any
) -> list[Turn]:
    """The turns of a session, in the order of its requests; ``more`` are fields of every request."""

    def one(request: Request) -> Turn:
        return send(client, api, request, is_streamed=is_streamed, model=model, **more)

    with ThreadPoolExecutor(max(map(len, steps))) as pool:
        return [turn for step in steps for turn in pool.map(one, step)]


def send(client: httpx.Client, api: Api, request: Request, *, is_streamed: bool, **more: Any) -> Turn:
    """One request, answered greedily; what goes wrong is the turn's problem."""
    body = {**api.body(request), "max_tokens": MAX_TOKENS, "temperature": 0, "stream": is_streamed, **more}
    if is_streamed and api is OPENAI:
        body["stream_options"] = {"include_usage": True}
    started = time.perf_counter()
    status, told, problem = 0, Told(), ""
    try:
        with client.stream("POST", api.path, json=body) as response:
            status = response.status_code
            if not response.is_success:
                problem = f"status {status}: {response.read()[:300]!r}"
            elif is_streamed:
                told = api.told_by(_events(response.iter_lines()))
            else:
                told = api.told(json.loads(response.read()))
    except (httpx.HTTPError, ValueError, KeyError) as error:
        problem = f"{type(error).__name__}: {error}"
    if not problem and not told.has_ended:
        problem = "the response breaks off before its end"
    return Turn(status, told, time.perf_counter() - started, problem)


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any] | str]:
    """The data of server-sent events."""
    for line in lines:
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            yield _DONE if data == _DONE else json.loads(data)
