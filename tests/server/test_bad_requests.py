"""Requests that are JSON and yet bad: large, deep, hostile. Each is a 4xx that says what is wrong, and none a 5xx."""

import base64
import json
import os
import struct
import zlib
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Served
from talk import ANSWER, QUESTION

CASES = 5 * int(os.environ.get("EDGE_LLAMA_CASES", "12"))
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
USER = [{"role": "user", "content": QUESTION}]


def ask(server: Served, path: str = CHAT, **fields: Any) -> httpx.Response:
    body = {"model": server.name, "messages": USER, "max_tokens": 16, **fields}
    return server.client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})


def check(server: Served, response: httpx.Response, *words: str, status: int = 400) -> None:
    """It was refused, in words, and the next request is answered."""
    message = response.json()["error"]["message"]
    assert response.status_code == status, message
    for word in words:
        assert word in message
    assert len(message) < 2000
    answer = ask(server, temperature=0)
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def formatted(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def test_a_schema_that_is_too_deep(talk: Served) -> None:
    check(talk, ask(talk, response_format=formatted(nested(150))))


def test_a_schema_that_refers_to_itself_for_ever(talk: Served) -> None:
    check(talk, ask(talk, response_format=formatted({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})))


def test_a_schema_that_refers_to_another_place(talk: Served) -> None:
    for place in ("http://127.0.0.1:1/schema.json", "file:///etc/passwd"):
        check(talk, ask(talk, response_format=formatted({"$ref": place})))


def test_a_regular_expression_that_counts_to_a_billion_takes_no_more_than_its_tokens(talk: Served) -> None:
    response = ask(talk, regex="((a{1000}){1000}){1000}")
    assert response.json()["choices"][0]["finish_reason"] == "length"


def test_a_regular_expression_that_is_none(talk: Served) -> None:
    check(talk, ask(talk, regex="(a"))


def tool(number: int, description: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "description": description}}}
    return {"name": f"tool_{number}", "description": description, "parameters": parameters}


def test_ten_megabytes_of_tools(talk: Served) -> None:
    tools = [tool(number, "word " * 500) for number in range(2000)]
    given = [{"type": "function", "function": each} for each in tools]
    check(talk, ask(talk, tools=given), "prompt is too long", "1,024")
    others = [{**each, "input_schema": each["parameters"]} for each in tools]
    for each in others:
        del each["parameters"]
    check(talk, ask(talk, MESSAGES, tools=others), "prompt is too long", "1,024")


def test_a_prompt_of_ten_megabytes(talk: Served) -> None:
    check(talk, ask(talk, messages=[{"role": "user", "content": "word " * (2 << 20)}]), "prompt is too long", "1,024")


def test_a_hundred_thousand_messages(talk: Served) -> None:
    messages = [{"role": "user", "content": ""}] * 100_000
    for path in (CHAT, MESSAGES):
        check(talk, ask(talk, path, messages=messages), "100,002 objects and lists", "50,000", status=413)


@pytest.mark.parametrize("values", ["0", '""', '{"a":[1,2,3]}'])
def test_more_values_than_may_be(talk: Served, values: str) -> None:
    count = 500_001 // (values.count(",") + 1) + 1
    body = f'{{"prompt":[{",".join([values] * count)}]}}'
    response = talk.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    check(talk, response, "500,000 values", status=413)


@pytest.mark.parametrize("text", ["," * 500_001, '",' * 500_001, "\\," * 500_001])
def test_commas_in_a_text_are_no_values(talk: Served, text: str) -> None:
    check(talk, ask(talk, messages=[{"role": "user", "content": text}]), "prompt is too long")


def test_brackets_in_a_text_are_no_objects(talk: Served) -> None:
    check(talk, ask(talk, messages=[{"role": "user", "content": "[{" * 60_000}]), "prompt is too long")


def image(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def bomb(side: int) -> bytes:
    """A PNG of so many pixels a side, all black, in a few bytes for each million."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + bytes(side // 8)) * side, 9)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_of_a_billion_pixels(talk: Served) -> None:
    data = base64.b64encode(bomb(32_768)).decode()
    check(talk, ask(talk, messages=image(f"data:image/png;base64,{data}")))
    source = {"type": "base64", "media_type": "image/png", "data": data}
    check(talk, ask(talk, MESSAGES, messages=[{"role": "user", "content": [{"type": "image", "source": source}]}]))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.png", "file:///etc/passwd", "/etc/passwd", "data:,", "data:image/png;base64,!"]
)
def test_what_is_no_picture_or_lies_elsewhere(talk: Served, url: str) -> None:
    check(talk, ask(talk, messages=image(url)))


def test_more_pictures_than_may_be_in_a_request(talk: Served) -> None:
    part = image("data:image/png;base64,aaaa")[0]["content"][0]
    check(talk, ask(talk, messages=[{"role": "user", "content": [part] * 1000}]), "64")


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ["a"] * 100_000},
        {"logit_bias": {str(token): 1 for token in range(100_000)}},
        {"logit_bias": {"1" * 5000: 1}},
        {"n": 10**9},
        {"max_tokens": 10**30},
        {"temperature": 10**400},
        {"top_logprobs": 10**9, "logprobs": True},
        {"messages": "no list"},
        {"messages": []},
        {"messages": [[]]},
        {"messages": [{"role": "\u0000", "content": "a"}]},
        {"messages": [{"role": "user", "content": {"a": "b"}}]},
        {"model": "a" * 1_000_000},
        {"a" * 100_000: 1},
        {"tool_choice": {"type": "function", "function": {"name": "no such"}}},
    ],
    ids=lambda fields: str(fields)[:30],
)
def test_fields_that_are_too_large_or_of_the_wrong_type(talk: Served, fields: dict[str, Any]) -> None:
    response = ask(talk, **fields)
    if response.status_code == 404:  # no such model
        assert len(response.text) < 2000
    else:
        check(talk, response)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
"""Any JSON."""


@settings(max_examples=CASES, deadline=None)
@given(data=st.data())
def test_any_json_in_any_field_is_answered_or_refused(talk: Served, data: st.DataObject) -> None:
    """What schemathesis draws is near to what is right; this is far from it."""
    document = talk.app.openapi()
    path = data.draw(st.sampled_from([path for path, operations in document["paths"].items() if "post" in operations]))
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = [*document["components"]["schemas"][body.rpartition("/")[2]]["properties"], "no such field"]
    body = data.draw(values | st.dictionaries(st.sampled_from(fields), values, max_size=6))
    headers = {"content-type": "application/json"}
    response = talk.client.post(path, content=json.dumps(body).encode("utf-8"), headers=headers)
    assert response.status_code < 500, (path, body, response.text)
    if response.status_code >= 400:
        assert response.json()["error"]["message"]
