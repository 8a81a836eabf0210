"""``/v1/models``: which models may be asked for, in OpenAI's form and Anthropic's at once."""

from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from edge_llama.server.described import Said
from edge_llama.server.entries import Entry
from edge_llama.server.failures import json_response
from edge_llama.server.handling import Here, Server
from edge_llama.server.openai.objects import responses

router = APIRouter()


class ModelFacts(Said):
    """What is known of a model, beside what OpenAI tells."""

    loaded: bool
    n_ctx: int | None = Field(description="Tokens that a prompt and its answer may take together; null: not loaded.")
    max_tokens: int | None = Field(description="That an answer may have at most; null: what the context holds.")
    device: str | None = Field(description="Where it runs; null: not loaded.")
    vision: bool | None = Field(description="Whether it sees images; null: not loaded.")
    embeds_only: bool | None = Field(description="Whether it embeds texts and writes none; null: not loaded.")
    aliases: list[str] = Field(description="Other names that it answers to.")


class ModelObject(Said):
    """A model."""

    id: str = Field(description="Its name.")
    object: Literal["model"]
    created: int = Field(description="When its file was last changed, in seconds since 1970.")
    owned_by: str
    type: Literal["model"]
    display_name: str = Field(description="The model's own name, also of an alias.")
    created_at: datetime = Field(description="As `created`, by RFC 3339.")
    max_input_tokens: int | None = Field(description="As `n_ctx` below.")
    edge_llama: ModelFacts = Field(description="An extension.")


class ModelList(Said):
    """All models."""

    object: Literal["list"]
    data: list[ModelObject]
    first_id: str | None
    last_id: str | None
    has_more: Literal[False]


@router.get("/v1/models", responses=responses(ModelList))
async def models(server: Here) -> Response:
    """The models, and aliases as models of their own, so that clients which look for a fixed name find it."""
    data = [_model(server, entry, name) for entry in server.pool.entries for name in (entry.name, *entry.aliases)]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return json_response({"object": "list", "data": data, **ends, "has_more": False})


@router.get("/v1/models/{name:path}", responses=responses(ModelObject))
async def model(name: str, server: Here) -> Response:
    """A model by its name or alias."""
    return json_response(_model(server, server.pool.entry(name), name))


def _model(server: Server, entry: Entry, name: str) -> dict[str, Any]:
    loaded = server.pool.loaded.get(entry.name)
    facts = {
        "loaded": loaded is not None,
        "n_ctx": loaded and loaded.n_ctx,
        "max_tokens": server.settings.limits.max_tokens,
        "device": loaded and loaded.placement.device,
        "vision": loaded and loaded.vision is not None,
        "embeds_only": loaded and loaded.artifact.is_encoder,
        "aliases": list(entry.aliases),
    }
    created = int(entry.path.stat().st_mtime) if entry.path.exists() else 0
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "edge-llama",
        "type": "model",
        "display_name": entry.name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "max_input_tokens": facts["n_ctx"],
        "edge_llama": facts,
    }
