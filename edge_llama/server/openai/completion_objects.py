"""What is said of completions, as the OpenAPI document tells it, whole and streamed."""

from typing import Literal

from pydantic import Field

from edge_llama.server.described import Said
from edge_llama.server.openai.objects import Usage


class CompletionLogprobs(Said):
    """The tokens of a choice, in parallel lists."""

    tokens: list[str] = Field(
        description="Their texts; `bytes:\\xe2\\x80` where one is a part of a character. `token_id:N`, if "
        "`return_tokens_as_token_ids` asks for it."
    )
    token_logprobs: list[float] = Field(description="Natural, by the model itself, before any sampling option.")
    top_logprobs: list[dict[str, float]] | None = Field(description="The likeliest tokens at each place.")
    text_offset: list[int] = Field(description="Characters of the answer before each token.")


class CompletionChoice(Said):
    """One answer, or in a stream what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None = Field(description="Null in a stream, but for the last one.")
    token_ids: list[int] | None = Field(None, description="An extension: if `return_token_ids` asks for them.")


class Completion(Said):
    """A completion, or in a stream a part of one."""

    id: str
    object: Literal["text_completion"]
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The model's name, not its alias.")
    system_fingerprint: str = Field(description="Which weights these are.")
    choices: list[CompletionChoice]
    usage: Usage | None = Field(
        None, description="In a stream in the last chunk, if `stream_options.include_usage` asks for it."
    )
