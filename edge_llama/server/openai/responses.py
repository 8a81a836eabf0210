"""``/v1/responses``: answers that are kept, asked for again, and gone on with."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from edge_llama.model import Model
from edge_llama.server.asking import Answers, Ask
from edge_llama.server.described import event_stream
from edge_llama.server.failures import ApiError, json_response
from edge_llama.server.handling import Here, Server, answer, model_name, worked
from edge_llama.server.openai import objects
from edge_llama.server.openai.answer_options import ANY_OBJECT, form_options, tool_options
from edge_llama.server.openai.responses_fields import (
    LOGPROBS,
    InputTokenFields,
    ObjectFormat,
    ResponseFields,
    SchemaFormat,
)
from edge_llama.server.openai.responses_messages import (
    messages_of,
    namespaces_of,
    read_items,
    tool_choice_of,
    tools_of,
)
from edge_llama.server.openai.responses_objects import EVENTS, Deleted, InputItems, InputTokens, ResponseOut
from edge_llama.server.openai.responses_writer import ResponseWriter
from edge_llama.server.openai.token_texts import TokenTexts
from edge_llama.server.store import Stored
from edge_llama.server.template_places import fitted
from edge_llama.server.thinking_effort import THINKING_BUDGETS

router = APIRouter()
_CREATED = objects.responses(ResponseOut)
_CREATED[200]["content"] = event_stream(*EVENTS)
_KEPT: dict[int | str, dict[str, Any]] = {status: _CREATED[status] for status in (400, 401, 403, 404, 429, 500)}


@router.post("/v1/responses", responses=_CREATED)
async def create_response(request: Request, fields: ResponseFields, server: Here) -> Response:
    """Answer a conversation, which may go on from an earlier response."""
    options = options_of(fields)
    read: list[dict[str, Any]] = []

    texts: TokenTexts | None = None

    def ask(model: Model) -> Ask:
        nonlocal texts
        read.extend(read_items(fields, server.responses))
        texts = TokenTexts.of(model.tokenizer) if "logprobs" in options else None
        messages = messages_of(fields.instructions, read, server.settings.limits.images)
        return Ask(fitted(model, messages, options.get("tools", ())), options)

    def keep(response: Mapping[str, Any]) -> None:
        server.responses.put(Stored(response, read))

    def told(answers: Answers) -> ResponseWriter:
        kept = None if fields.store is False else keep
        return ResponseWriter(_head(fields, answers, options), namespaces_of(fields), texts, kept)

    return await answer(request, fields, model_name(server, fields.model), ask, told, is_streamed=bool(fields.stream))


@router.post("/v1/responses/input_tokens", responses=objects.responses(InputTokens))
async def count_input_tokens(request: Request, fields: InputTokenFields, server: Here) -> Response:
    """Count the tokens of a response's prompt, all that its usage will count as input."""

    def counted(model: Model) -> dict[str, Any]:
        tools = tools_of(fields)
        messages = messages_of(fields.instructions, read_items(fields, server.responses), server.settings.limits.images)
        count = model.count_tokens(fitted(model, messages, tools), tools=tools, n_ctx=model.n_ctx)
        return {"object": "response.input_tokens", "input_tokens": count}

    return await worked(request, fields, model_name(server, fields.model), counted)


@router.get("/v1/responses/{response_id}", responses={200: {"model": ResponseOut}, **_KEPT})
def get_response(server: Here, response_id: str, stream: bool | None = None) -> Response:
    """A response that was kept."""
    if stream:
        raise ApiError(400, "stream is not supported: a response that is kept is whole", param="stream")
    return json_response(_kept(server, response_id).response)


@router.get("/v1/responses/{response_id}/input_items", responses={200: {"model": InputItems}, **_KEPT})
def list_input_items(
    server: Here,
    response_id: str,
    after: Annotated[str | None, Query(description="The id of the item before the first.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="How many.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="`desc`: the last first.")] = "desc",
) -> Response:
    """The items that the model read: those of earlier responses, and the request's."""
    items = _kept(server, response_id).read
    items = items if order == "asc" else items[::-1]
    if after is not None:
        items = items[_place(items, after) + 1 :]
    page = items[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    more = len(items) > limit
    return json_response({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": more})


@router.delete("/v1/responses/{response_id}", responses={200: {"model": Deleted}, **_KEPT})
def delete_response(server: Here, response_id: str) -> Response:
    """Forget a response. Later ones that went on with it keep its conversation."""
    if not server.responses.delete(response_id):
        raise _not_found(response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


def options_of(fields: ResponseFields) -> dict[str, Any]:
    """:class:`edge_llama.AnswerOptions`. ApiError for tools that don't go together."""
    given: dict[str, Any] = {
        "max_tokens": fields.max_output_tokens,
        "temperature": fields.temperature,
        "top_p": fields.top_p,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if fields.top_logprobs or LOGPROBS in (fields.include or ()):
        options["logprobs"] = fields.top_logprobs or 0
    if fields.reasoning and fields.reasoning.effort:
        options["thinking_budget"] = THINKING_BUDGETS[fields.reasoning.effort]
    choice = tool_choice_of(fields)
    options |= tool_options(tools_of(fields), choice, fields.parallel_tool_calls)
    return options | form_options(choice, _schema(fields))


def _schema(fields: ResponseFields) -> Mapping[str, Any] | None:
    match fields.text and fields.text.format:
        case ObjectFormat():
            return ANY_OBJECT
        case SchemaFormat(json_schema=schema):
            return schema
    return None


def _head(fields: ResponseFields, answers: Answers, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a response says of its request."""
    used = {name: options[name] for name in ("temperature", "top_p") if name in options}
    sampling = answers.lease.model.sampling(used)
    told = {"text", "tool_choice", "tools"}  # the input may be megabytes
    given = fields.model_dump(include=told, by_alias=True, exclude_unset=True, warnings=False)  # kinds: JSON's alone
    form = (given.get("text") or {}).get("format") or {"type": "text"}
    return {
        "model": answers.lease.name,
        "instructions": fields.instructions,
        "previous_response_id": fields.previous_response_id,
        "background": False,
        "max_output_tokens": fields.max_output_tokens,
        "metadata": fields.metadata or {},
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
        "reasoning": {"effort": fields.reasoning.effort if fields.reasoning else None, "summary": None},
        "store": fields.store is not False,
        "temperature": sampling.temperature,
        "text": {"format": form},
        "tool_choice": given.get("tool_choice") or "auto",
        "tools": given.get("tools") or [],
        "top_logprobs": fields.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
    }


def _kept(server: Server, name: str) -> Stored:
    if (stored := server.responses.get(name)) is None:
        raise _not_found(name)
    return stored


def _not_found(name: str) -> ApiError:
    return ApiError(404, f"Response with id {name[:80]!r} not found", code="response_not_found", param="response_id")


def _place(items: list[dict[str, Any]], name: str) -> int:
    """ApiError if there is no item of this id."""
    for at, item in enumerate(items):
        if item["id"] == name:
            return at
    raise ApiError(400, f"after is {name[:80]!r}, which is none of the items", param="after")
