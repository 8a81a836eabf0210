"""A model that sees reads a picture that comes by each API, and remembers it in the next turn."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Served, serve

import converters
from edge_llama.server.pool import Pool

DATA = base64.b64encode((Path(__file__).parents[2] / "docs" / "digits.png").read_bytes()).decode()
URL = f"data:image/png;base64,{DATA}"
QUESTION, ANSWER = "Which digits are these?", "left 5, right 4"
NEXT, LEFT = "Which is on the left?", "5"


@pytest.fixture(scope="module")
def reader(llama4_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("digits") / "digits"
    converters.convert(llama4_digits, folder, quant="q8_0")
    with serve(Pool([str(folder)], {"n_ctx": 1024, "threads": 1}, isolate=False)) as served:
        yield served


def posted(served: Served, path: str, **body: Any) -> Any:
    response = served.client.post(path, json={"model": served.name, "temperature": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_block_of_a_message(reader: Served) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]}
    ]
    first = posted(reader, "/v1/messages", messages=turns, max_tokens=32)
    assert first["content"][0]["text"] == ANSWER
    counted = reader.client.post("/v1/messages/count_tokens", json={"model": reader.name, "messages": turns}).json()
    assert counted["input_tokens"] == first["usage"]["input_tokens"] + first["usage"]["cache_read_input_tokens"]
    turns += [{"role": "assistant", "content": first["content"]}, {"role": "user", "content": NEXT}]
    second = posted(reader, "/v1/messages", messages=turns, max_tokens=32)
    assert second["content"][0]["text"] == LEFT
    assert second["usage"]["cache_read_input_tokens"] >= counted["input_tokens"]


def test_a_part_of_a_chat(reader: Served) -> None:
    parts = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": QUESTION}]
    told = posted(reader, "/v1/chat/completions", messages=[{"role": "user", "content": parts}], max_tokens=32)
    assert told["choices"][0]["message"]["content"] == ANSWER


def test_a_part_of_a_response_that_is_gone_on_with(reader: Served) -> None:
    parts = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": QUESTION}]
    first = posted(reader, "/v1/responses", input=[{"role": "user", "content": parts}])
    assert first["output"][0]["content"][0]["text"] == ANSWER
    second = posted(reader, "/v1/responses", input=NEXT, previous_response_id=first["id"])
    assert second["output"][0]["content"][0]["text"] == LEFT
