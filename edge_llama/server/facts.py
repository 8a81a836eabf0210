"""``/health``: whether the server is there; ``/metrics``: what it has done."""

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from edge_llama.errors import EdgeLlamaError
from edge_llama.model import Model
from edge_llama.runtime.stats import Stats
from edge_llama.server.failures import json_response
from edge_llama.server.handling import Here, Server
from edge_llama.server.openai.objects import responses

router = APIRouter()
_PATIENCE = 2.0
"""Seconds for a model to tell its numbers: one that is busy to death shall not keep those of the others."""
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: told for status, told in responses(BaseModel).items() if status in (401, 403, 415, 429, 431, 503)
}


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok", "draining"] = Field(description="draining: the server is about to end and takes no more")
    models: int = Field(description="how many may be asked for")
    loaded: int = Field(description="how many of them are in memory now")


@router.get(
    "/health",
    response_model=Health,
    responses={**_ERRORS, 503: {"model": Health, "description": "The server is about to end."}},
)
async def health(here: Here) -> Response:
    """Whether the server takes requests: nothing of a model is asked for that, and no key."""
    is_draining = here.traffic.is_draining
    status: Literal["ok", "draining"] = "draining" if is_draining else "ok"
    found = Health(status=status, models=len(here.pool.entries), loaded=len(here.pool.loaded))
    return json_response(found.model_dump(), 503 if is_draining else 200)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=_ERRORS,
)
async def metrics(here: Here) -> Response:
    """What the server has done, for Prometheus."""
    loaded = dict(here.pool.loaded)
    found = await asyncio.gather(*(_stats(here, model) for model in loaded.values()))
    told = {name: stats for name, stats in zip(loaded, found, strict=True) if stats}
    return Response(here.metrics.text(told), media_type=CONTENT_TYPE_LATEST)


async def _stats(here: Server, model: Model) -> Stats | None:
    """A model's numbers; None if it can't tell them."""
    try:
        return await asyncio.wait_for(here.pool.in_thread(lambda asked: asked.stats(), model), _PATIENCE)
    except (EdgeLlamaError, TimeoutError):
        return None
