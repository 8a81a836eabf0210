"""Embeddings, by OpenAI's own client and as they are sent."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from serving import Served, serve

from edge_llama.server.openai.embeddings import EmbeddingList
from edge_llama.server.pool import Pool

TEXTS = ["The capital of Japan is Tokyo.", "a"]


@pytest.fixture(scope="module")
def encoder(bert: Path) -> Iterator[Served]:
    with serve(Pool([str(bert)], {"threads": 1}, isolate=False)) as served:
        yield served


def embedded(served: Served, status: int = 200, **fields: Any) -> dict[str, Any]:
    response = served.client.post("/v1/embeddings", json={"input": TEXTS, **fields})
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    if status == 200:
        EmbeddingList.model_validate(body)
    return body


def tokens_of(served: Served, text: str) -> list[int]:
    """Those of a text, and around it."""
    found: list[int] = served.client.post("/tokenize", json={"content": text, "add_special": True}).json()["tokens"]
    return found


@pytest.mark.parametrize("form", ["float", "base64"])
def test_the_client_gets_vectors(encoder: Served, form: Any) -> None:
    with openai.OpenAI(base_url=f"{encoder.url}/v1", api_key="none", max_retries=0) as client:
        given = client.embeddings.create(model=encoder.name, input=TEXTS)  # which asks for base64 by itself
        expected = encoder.model.embed(TEXTS)
        np.testing.assert_allclose([each.embedding for each in given.data], expected, rtol=0, atol=1e-5)
        assert [each.index for each in given.data] == [0, 1]
    body = embedded(encoder, encoding_format=form)
    rows = [each["embedding"] for each in body["data"]]
    if form == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)


def test_tokens_are_counted_with_those_around_each_text(encoder: Served) -> None:
    counts = [len(tokens_of(encoder, text)) for text in TEXTS]
    assert embedded(encoder)["usage"] == {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}


def test_one_text_and_token_ids_are_texts_too(encoder: Served) -> None:
    one = embedded(encoder, input=TEXTS[0])["data"]
    ids = tokens_of(encoder, TEXTS[1])
    assert len(one) == 1
    for given in (ids, ids[1:-1], [ids, ids]):
        data = embedded(encoder, input=given)["data"]
        np.testing.assert_allclose(data[-1]["embedding"], embedded(encoder)["data"][1]["embedding"], rtol=0, atol=1e-5)
    assert embedded(encoder, input=["a", [5]], status=400)["error"]["param"] == "input.1"


def test_dimensions_are_the_models_own(encoder: Served) -> None:
    own = len(embedded(encoder)["data"][0]["embedding"])
    embedded(encoder, dimensions=own)
    error = embedded(encoder, dimensions=own - 1, status=400)["error"]
    assert error["param"] == "dimensions"
    assert str(own) in error["message"]


def test_what_can_not_be_embedded_is_told_of(encoder: Served) -> None:
    assert "empty" in embedded(encoder, input=["a", ""], status=400)["error"]["message"]
    assert embedded(encoder, input="word " * 200, status=400)["error"]["code"] == "context_length_exceeded"
    assert embedded(encoder, input=[], status=400)["error"]["param"] == "input"
    assert embedded(encoder, encoding_format="hex", status=400)["error"]["param"] == "encoding_format"
    assert embedded(encoder, model="other", status=404)["error"]["code"] == "model_not_found"


def test_an_encoder_writes_nothing(encoder: Served) -> None:
    response = encoder.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
    assert response.status_code == 400
    assert "embeds text and writes none" in response.json()["error"]["message"]
