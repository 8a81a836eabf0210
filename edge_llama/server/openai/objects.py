"""What OpenAI's responses have in common, as the OpenAPI document tells it: usage, errors, log-probabilities."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from edge_llama.generation import Answer
from edge_llama.server.described import ERRORS, Said, event_stream
from edge_llama.server.events import Event
from edge_llama.server.fields import IGNORED_HEADER
from edge_llama.server.measured import Measured, measured


class Problem(Said):
    """What went wrong."""

    message: str = Field(description="One sentence for people: what, where, the value, the remedy.")
    type: str = Field(description="`invalid_request_error`, `authentication_error`, `server_error`, …")
    param: str | None = Field(description="The field that is wrong.")
    code: str | None = Field(description="A word for programs: `context_length_exceeded`, `model_not_found`, `busy`, …")


class Failed(Said):
    """An error."""

    error: Problem


class PromptTokens(Said):
    """Of a prompt's tokens."""

    cached_tokens: int = Field(description="Those that the KV cache already held: they were not read again.")
    audio_tokens: int = Field(description="None.")


class CompletionTokens(Said):
    """Of an answer's tokens."""

    reasoning_tokens: int = Field(description="Those that the model thought before it answered.")
    audio_tokens: int = Field(description="None.")
    accepted_prediction_tokens: int = Field(description="None.")
    rejected_prediction_tokens: int = Field(description="None.")


class Usage(Said):
    """What a request took."""

    prompt_tokens: int = Field(description="Of the prompt, once for several answers to it.")
    completion_tokens: int = Field(description="Of all answers, thoughts among them.")
    total_tokens: int = Field(description="Both.")
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens
    edge_llama: Measured = Field(description="An extension: speed, and why the cache held no more of the prompt.")


def usage(answers: Sequence[Answer], choices: int = 1) -> dict[str, Any]:
    """A :class:`Usage`; each prompt has so many answers, which come one after another."""
    prompts = [answer.timings for answer in answers[::choices]]
    all_timings = [answer.timings for answer in answers]
    read = sum(timings.prompt_tokens for timings in prompts)
    written = sum(timings.generated_tokens for timings in all_timings)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(timings.cached_tokens for timings in prompts),
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(timings.thinking_tokens for timings in all_timings),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "edge_llama": measured(answers, choices),
    }


DONE = Event("[DONE]")
"""The end of a stream that is whole."""
_IGNORED = {
    "description": "Fields of the request that had no effect.",
    "schema": {"type": "string"},
    "required": False,
}
_RETRY = {"description": "Seconds after which to ask again.", "schema": {"type": "integer"}, "required": False}


def responses(said: type[BaseModel], *, streamed: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """An endpoint's responses for the OpenAPI document: ``said``, or events with ``streamed``, or errors."""
    good: dict[str, Any] = {"model": said, "description": "The answer.", "headers": {IGNORED_HEADER: _IGNORED}}
    if streamed:
        good["description"] = "The answer, or with `stream` its parts as they come."
        good["content"] = event_stream(streamed, Failed, last="[DONE]")
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": Failed, "description": text} for status, text in ERRORS.items()
    }
    errors[429]["headers"] = errors[503]["headers"] = {"Retry-After": _RETRY}
    return {200: good, **errors}
