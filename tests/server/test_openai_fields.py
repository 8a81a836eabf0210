"""Every field of OpenAI's interface has its treatment, and what is wrong with one is told where it stands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartImageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
    chat_completion_content_part_image_param,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from openai.types.shared_params import FunctionDefinition, ResponseFormatJSONSchema
from openai.types.shared_params.response_format_json_schema import JSONSchema
from serving import Served, serve

from edge_llama.server.fields import IGNORED_HEADER, Fields, rows
from edge_llama.server.openai import chat_fields as ours
from edge_llama.server.openai.completion_fields import CompletionFields, EmbeddingFields
from edge_llama.server.openai.sampling_fields import StreamOptions
from edge_llama.server.pool import Pool

QUESTION = {"role": "user", "content": "Hello!"}
EXTENSIONS: dict[type[Fields], set[str]] = {
    ours.ChatFields: {"top_k", "min_p", "repetition_penalty", "regex", "grammar", "thinking_budget"}
    | {"chat_template_kwargs"},
    CompletionFields: {"top_k", "min_p", "repetition_penalty", "regex", "grammar", "json_schema"}
    | {"allow_control_tokens", "return_token_ids", "return_tokens_as_token_ids"},
    ours.AssistantMessage: {"reasoning_content", "annotations"},
    ours.ToolMessage: {"name"},
    ours.TextPart: {"cache_control"},
    ours.ImagePart: {"cache_control"},
    ours.ToolFields: {"cache_control"},
    ours.CallFields: {"index"},
    ours.FunctionFields: {"return"},
}


@pytest.fixture(scope="module")
def talk(small_talk: Path) -> Iterator[Served]:
    with serve(Pool([str(small_talk)], {"n_ctx": 512, "threads": 1}, isolate=False)) as served:
        yield served


@pytest.mark.parametrize(
    ("fields", "theirs"),
    [
        (ours.ChatFields, chat_create_params.CompletionCreateParamsStreaming),
        (CompletionFields, completion_create_params.CompletionCreateParamsStreaming),
        (EmbeddingFields, embedding_create_params.EmbeddingCreateParams),
        (StreamOptions, ChatCompletionStreamOptionsParam),
        (ours.SystemMessage, ChatCompletionSystemMessageParam),
        (ours.SystemMessage, ChatCompletionDeveloperMessageParam),
        (ours.UserMessage, ChatCompletionUserMessageParam),
        (ours.AssistantMessage, ChatCompletionAssistantMessageParam),
        (ours.ToolMessage, ChatCompletionToolMessageParam),
        (ours.TextPart, ChatCompletionContentPartTextParam),
        (ours.ImagePart, ChatCompletionContentPartImageParam),
        (ours.ImageUrl, chat_completion_content_part_image_param.ImageURL),
        (ours.CallFields, ChatCompletionMessageFunctionToolCallParam),
        (ours.ToolFields, ChatCompletionFunctionToolParam),
        (ours.FunctionFields, FunctionDefinition),
        (ours.JsonSchemaFormat, ResponseFormatJSONSchema),
        (ours.JsonSchema, JSONSchema),
    ],
)
def test_every_field_has_its_treatment(fields: type[Fields], theirs: type) -> None:
    names = {field.alias or name for name, field in fields.model_fields.items()}
    assert names - EXTENSIONS.get(fields, set()) == set(get_type_hints(theirs))


def test_every_field_is_explained() -> None:
    for fields in (ours.ChatFields, CompletionFields, EmbeddingFields):
        table = list(rows(fields))
        assert not [row.name for row in table if not row.note]
        assert len({row.name for row in table}) == len(table)


def chat(served: Served, **fields: Any) -> Any:
    given = {"messages": [QUESTION], "temperature": 0, "max_tokens": 2, **fields}
    return served.client.post("/v1/chat/completions", json=given)


def test_what_has_no_effect_is_named(talk: Served) -> None:
    without = {
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "user": "me",
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"mode": "explicit"},
        "verbosity": "low",
    }
    inner = [
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]}
    ]
    response = chat(talk, messages=inner, **without)
    assert response.status_code == 200, response.text
    assert set(response.headers[IGNORED_HEADER].split(", ")) == {*without, "name", "cache_control"}
    assert IGNORED_HEADER not in chat(talk, **dict.fromkeys(without)).headers
    streamed = chat(talk, stream=True, stream_options={"include_obfuscation": True})
    assert streamed.headers[IGNORED_HEADER] == "include_obfuscation"


@pytest.mark.parametrize(
    "field",
    ["audio", "modalities", "moderation", "prediction", "web_search_options", "function_call", "functions"],
)
def test_what_can_not_be_is_refused_by_name(talk: Served, field: str) -> None:
    response = chat(talk, **{field: ["audio"]})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == field
    assert error["message"].startswith(f"{field} is not supported: ")
    assert chat(talk, **{field: None}).status_code == 200


def test_what_is_asked_for_anyway_is_no_error(talk: Served) -> None:
    assert chat(talk, modalities=["text"]).status_code == 200
    given = {"prompt": "Hello", "best_of": 1, "suffix": "", "max_tokens": 1}
    assert talk.client.post("/v1/completions", json=given).status_code == 200
    given["best_of"] = True
    assert talk.client.post("/v1/completions", json=given).status_code == 400


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "Hello"}, "messages", "list"),
    ({"messages": [5]}, "messages.0", "role is one of"),
    ({"messages": [{"role": "king", "content": "a"}]}, "messages.0", "role is one of system, user, assistant, tool"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "expected a text, or a list of parts"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "expected a text"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0", "text, image_url"),
    ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "messages.0.content.0", "one of text"),
    ({"messages": [{**QUESTION, "mood": 1}]}, "messages.0.mood", "no such field"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.tool_call_id", "required"),
    ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio", "not supported"),
    ({"temperature": "0"}, "temperature", "number"),
    ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
    ({"top_p": -1}, "top_p", "greater than or equal to 0"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 1.5}, "n", "integer"),
    ({"stop": 5}, "stop", "expected a text, or a list of texts"),
    ({"stop": ["a"] * 17}, "stop", "at most 16"),
    ({"stop": [""]}, "stop.0", "at least 1 character"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "less than or equal to 20"),
    ({"logit_bias": {"a": 1}}, "logit_bias.a", "match pattern"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "required"),
    ({"tool_choice": "maybe"}, "tool_choice", "'auto', 'none' or 'required'"),
    ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
    ({"surprise": 1}, "surprise", "no such field"),
    ({"<str>": 1}, "<str>", "no such field"),
]


@pytest.mark.parametrize(("given", "place", "message"), WRONG)
def test_what_is_wrong_is_told_where_it_stands(talk: Served, given: dict[str, Any], place: str, message: str) -> None:
    response = chat(talk, **given)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == place
    assert error["message"].startswith(place)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_whole_number_may_be_written_as_a_fraction(talk: Served) -> None:
    body = b'{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2.0, "seed": 1e1, "temperature": 1}'
    response = talk.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.json()["usage"]["completion_tokens"] == 2
    assert talk.client.post("/detokenize", json={"tokens": [5.0, 6]}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"a"', b'{"messages": [{"role": "user", "content": "\xff"}]}', b"[" * 10_000],
)
def test_a_broken_body_is_told_of(talk: Served, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"):
        response = talk.client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, (path, response.text)
        assert response.json()["error"]["message"]


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\ud800": 1}'])
def test_a_lone_surrogate_is_told_of(talk: Served, text: str) -> None:
    tool = '{"type": "function", "function": {"name": "a", "parameters": %s}}'
    bodies = {
        "/v1/chat/completions": [
            f'{{"messages": [{{"role": "user", "content": {text}}}]}}',
            f'{{"messages": [{{"role": {text}, "content": ""}}]}}',
            f'{{"messages": [{{"role": "user", "content": "a"}}], "tools": [{tool % text}]}}',
            f'{{"messages": [{{"role": "user", "content": "a"}}], "model": {text}}}',
            f'{{"messages": [{{"role": "user", "content": "a"}}], {text}: 1}}' if text[0] == '"' else "{",
        ],
        "/v1/completions": [f'{{"prompt": {text}}}', f'{{"prompt": "a", "stop": {text}}}'],
        "/v1/embeddings": [f'{{"input": {text}}}'],
        "/tokenize": [f'{{"content": {text}}}'],
    }
    for path, wrong in bodies.items():
        for body in wrong:
            response = talk.client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code in (400, 404), (path, body, response.text)
            assert response.json()["error"]["message"]
