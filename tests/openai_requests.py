"""Requests for chat completions, whose answers are as documented."""

import json
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from serving import Served

from edge_llama.server.openai import chat_objects

QUESTION = {"role": "user", "content": "What is the capital of Japan?"}


def asked(served: Served, *messages: dict[str, Any], status: int = 200, **fields: Any) -> dict[str, Any]:
    """The body of the answer to a request, which is as documented."""
    given = {"messages": list(messages) or [QUESTION], "temperature": 0, **fields}
    response = served.client.post("/v1/chat/completions", json=given)
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    if status == 200:
        chat_objects.ChatCompletion.model_validate(body)
        ChatCompletion.model_validate(body)
    return body


def streamed(served: Served, *messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, which is whole and as documented."""
    given = {"messages": list(messages) or [QUESTION], "temperature": 0, "stream": True, **fields}
    response = served.client.post("/v1/chat/completions", json=given)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    for chunk in chunks:
        chat_objects.ChatCompletionChunk.model_validate(chunk)
        ChatCompletionChunk.model_validate(chunk)
    return chunks


def joined(chunks: list[dict[str, Any]], key: str = "content", choice: int = 0) -> str:
    deltas = (each["delta"] for chunk in chunks for each in chunk["choices"] if each["index"] == choice)
    return "".join(delta.get(key) or "" for delta in deltas)
