"""What is said of chat completions, as the OpenAPI document tells it, whole and streamed."""

from typing import Literal

from pydantic import Field

from edge_llama.server.described import Said
from edge_llama.server.openai.objects import Usage

FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(Said):
    """One of the likeliest tokens at a place."""

    token: str = Field(description="Its text; `bytes:\\xe2\\x80` where it is a part of a character.")
    bytes: list[int] | None = Field(description="Its text in UTF-8; null for a control token.")
    logprob: float = Field(description="Natural, by the model itself, before any sampling option.")


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens at its place, best first.")


class ChoiceLogprobs(Said):
    """The tokens of a choice."""

    content: list[TokenLogprob]
    refusal: None


class FunctionCall(Said):
    """What is called."""

    name: str
    arguments: str = Field(description="A JSON object.")


class Call(Said):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(Said):
    """The answer."""

    role: Literal["assistant"]
    content: str | None = Field(description="Null if there is nothing but calls.")
    refusal: None = Field(description="Models here refuse in words.")
    reasoning_content: str | None = Field(None, description="An extension: what the model thought before.")
    tool_calls: list[Call] | None = Field(None, min_length=1)


class Choice(Said):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Said):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The model's name, not its alias.")
    system_fingerprint: str = Field(description="Which weights these are.")
    choices: list[Choice]
    usage: Usage


class CallDelta(Call):
    """A tool call, which comes whole."""

    index: int


class Delta(Said):
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(Said):
    """What is new of an answer."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Said):
    """A part of a chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = Field(None, description="In the last chunk, if `stream_options.include_usage` asks for it.")
