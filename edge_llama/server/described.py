"""Server-sent events as the OpenAPI document tells of them."""

from typing import Any

from pydantic import BaseModel


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
