"""``/v1/embeddings``."""

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import Field

from edge_llama.model import Model
from edge_llama.runtime.embeddings import text_tokens
from edge_llama.server.described import Said
from edge_llama.server.events import unless_left
from edge_llama.server.failures import ApiError, json_response
from edge_llama.server.handling import LEFT, Here, Server, headers_of, model_name
from edge_llama.server.metrics import Counts
from edge_llama.server.openai.completion_fields import EmbeddingFields
from edge_llama.server.openai.given_texts import texts_of
from edge_llama.server.openai.objects import responses

router = APIRouter()


class EmbeddingObject(Said):
    """A text's vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Of unit length: numbers, or float32 in base64.")


class EmbeddingUsage(Said):
    """What the texts took."""

    prompt_tokens: int = Field(description="Of all texts, with what the model wants before and after each.")
    total_tokens: int


class EmbeddingList(Said):
    """The vectors, in the texts' order."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str = Field(description="The model's name, not its alias.")
    usage: EmbeddingUsage


@router.post("/v1/embeddings", responses=responses(EmbeddingList))
async def embeddings(request: Request, fields: EmbeddingFields, server: Here) -> Response:
    """Vectors of texts, pooled as the model's file says."""
    body = await unless_left(request, _embedded(server, fields))
    if body is None:
        return Response(status_code=LEFT)
    request.state.counted = lambda: Counts(body["model"], body["usage"]["prompt_tokens"])
    return json_response(body, headers=headers_of(fields))


async def _embedded(server: Server, fields: EmbeddingFields) -> dict[str, Any]:
    async with server.pool.lease(model_name(server, fields.model)) as lease:
        vectors, count = await server.pool.in_thread(_vectors, lease.model, fields)
    as_text = fields.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": at, "embedding": _base64(vector) if as_text else vector.tolist()}
        for at, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": lease.name, "usage": usage}


def _vectors(model: Model, fields: EmbeddingFields) -> tuple[NDArray[np.float32], int]:
    """``(n, n_embd)``, and how many tokens the texts have."""
    pooling = model.pooling().name  # what embeds nothing says so before texts are cut into tokens
    texts = texts_of(fields.input, "input", model.tokenizer, model.n_ctx)
    count = sum(map(len, text_tokens(texts, model.tokenizer, model.n_ctx)))
    vectors = model.embed(texts, pooling)
    _check_dimensions(fields.dimensions, vectors.shape)
    return vectors, count


def _check_dimensions(asked: int | None, shape: Sequence[int]) -> None:
    if asked is not None and asked != shape[1]:
        raise ApiError(
            400,
            f"dimensions is {asked}, the model's vectors have {shape[1]} and can't be shortened: leave it out",
            param="dimensions",
        )


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
