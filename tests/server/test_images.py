"""Pictures as each API's clients send them, to a model that reads the digits in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from serving import Served, serve

import converters
from edge_llama import Image
from edge_llama.server.pool import Pool

PICTURE = Image.open(Path(__file__).parents[2] / "docs" / "digits.png")
"""A five and a four."""
QUESTION, ANSWER = "Which digits are these?", "left 5, right 4"


@pytest.fixture(scope="module")
def digits(llama4_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pictures") / "digits"
    converters.convert(llama4_digits, folder, quant="f32", vision_quant="f32")
    with serve(Pool([str(folder)], {"n_ctx": 1024, "threads": 1}, isolate=False)) as served:
        yield served


def test_openais_client_shows_a_picture(digits: Served) -> None:
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": PICTURE.to_data_url()}}
    messages: list[Any] = [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]
    with openai.OpenAI(base_url=f"{digits.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="digits", messages=messages, temperature=0)
        assert answer.choices[0].message.content == ANSWER
        again = client.chat.completions.create(model="digits", messages=messages, temperature=0)
        assert again.usage is not None
        assert again.usage.prompt_tokens_details is not None
        assert (again.usage.prompt_tokens_details.cached_tokens or 0) >= again.usage.prompt_tokens - 1
        content: list[Any] = [
            {"type": "input_image", "image_url": PICTURE.to_data_url(), "detail": "auto"},
            {"type": "input_text", "text": QUESTION},
        ]
        asked: list[Any] = [{"role": "user", "content": content}]
        assert client.responses.create(model="digits", input=asked, temperature=0).output_text == ANSWER


def test_anthropics_client_shows_a_picture(digits: Served) -> None:
    kind, data = PICTURE.to_data_url().removeprefix("data:").split(";base64,")
    image: dict[str, Any] = {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}
    messages: list[Any] = [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]
    with anthropic.Anthropic(base_url=digits.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(model="digits", max_tokens=20, messages=messages, extra_body={"temperature": 0})
        assert answer.content[0].type == "text"
        assert answer.content[0].text == ANSWER
