"""What the OpenAPI document tells of responses in every API: objects, errors, and server-sent events."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Said(BaseModel):
    """A response, or an object within one: nothing else is in it."""

    model_config = ConfigDict(extra="forbid")


ERRORS: Mapping[int | str, str] = {
    400: "The request is wrong, or does not fit: the message says where and why.",
    401: "The API key is missing or wrong.",
    403: "The Host or Origin header is not one that may ask.",
    404: "There is no such model.",
    408: "The request's body did not come in time.",
    413: "The request is larger than may be.",
    415: "The request's body is not JSON, or is compressed.",
    429: "More requests wait than may; Retry-After says when to ask again.",
    431: "The request's headers are larger than may be.",
    500: "The server failed.",
    503: "The engine failed, or the model can't be loaded now; the next request may work.",
    504: "The answer took longer than may be.",
}
"""By an error's status: when it comes."""


def event_stream(*said: type[BaseModel], last: str | None = None) -> dict[str, Any]:
    """The content of a response that is a stream of such objects; ``last`` is a text that ends it.

    Before OpenAPI 3.2 a stream's schema is that of each event, whose data is text (there it is called itemSchema).
    """
    each = {"anyOf": [_inlined(model.model_json_schema()) for model in said]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": each}
    event = {
        "type": "object",
        "properties": {"data": data if last is None else {"anyOf": [{"const": last}, data]}},
        "required": ["data"],
    }
    return {"text/event-stream": {"schema": event}}


def _inlined(schema: dict[str, Any]) -> Any:
    """A schema without references: those to ``$defs`` would be looked for in the whole document."""
    known = schema.pop("$defs", {})

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            rest = {key: each for key, each in value.items() if key != "$ref"}
            return without({**known[value["$ref"].rpartition("/")[2]], **rest})
        return {key: without(each) for key, each in value.items()}

    return without(schema)
