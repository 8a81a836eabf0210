"""What a request for a completion may say."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from edge_llama.server.fields import Fields, Refused
from edge_llama.server.openai.marks import NO_USERS
from edge_llama.server.openai.sampling_fields import SamplingFields, StreamOptions
from edge_llama.server.token_ids import TokenIds

_Several = Field(min_length=1, max_length=2048)


def _kind(value: object) -> str:
    """What a list is of, its first item says."""
    if isinstance(value, list):
        return f"<list of {type(value[0]).__name__}>" if value else "<list of str>"
    return f"<{type(value).__name__}>"


TextsOrIds: TypeAlias = Annotated[
    Annotated[str, Tag("<str>")]
    | Annotated[list[str], _Several, Tag("<list of str>")]
    | Annotated[TokenIds, Tag("<list of int>")]
    | Annotated[list[TokenIds], _Several, Tag("<list of list>")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message="expected a text, a list of texts, token ids, or a list of lists of token ids",
    ),
]
"""One text or several, or one text as token ids or several."""


class CompletionFields(SamplingFields):
    """A request for a completion: text is continued as it stands, without a chat template."""

    model: str | None = Field(None, description="A model's name or alias; may be left out where there is one model.")
    prompt: TextsOrIds = Field(
        description="A text, a list of texts, or token ids of one text or several, which must be those that the model "
        "makes of their text (see `/tokenize`). The token that the model wants at the beginning is put there."
    )
    allow_control_tokens: bool | None = Field(
        None,
        description="An extension: the ids of `prompt` are taken as they are, control tokens among them, and nothing "
        "is put before them. For clients that render the chat template themselves, as edge-llama does with a model on "
        "a server; not together with `echo`.",
    )
    max_tokens: int | None = Field(None, ge=1, description="Tokens of the answer at most; 16 unless it is given.")
    n: int | None = Field(None, ge=1, description="Answers to each prompt; 16 at most, of all prompts together.")
    stream: bool | None = Field(None, description="Server-sent events as the answer comes.")
    stream_options: StreamOptions | None = Field(None, description="See below; without effect unless streamed.")
    echo: bool | None = Field(None, description="The prompt stands before its answer; not together with `logprobs`.")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Log-probabilities of the tokens, and so many of the likeliest at each place."
    )
    json_schema: dict[str, Any] | None = Field(
        None, description="An extension, as llama-server has it: the answer is JSON that fits this schema."
    )
    return_token_ids: bool | None = Field(
        None, description="An extension, as vLLM has it: a choice has `token_ids`, in a stream those of what is new."
    )
    return_tokens_as_token_ids: bool | None = Field(
        None, description="An extension, as vLLM has it: log-probabilities name tokens `token_id:N`."
    )
    best_of: Annotated[Any, Refused("each answer is given: use n", allowed=(1,))] = None
    suffix: Annotated[Any, Refused("the models here continue text, they don't fill in", allowed=("",))] = None
    user: Annotated[str | None, NO_USERS] = None


class EmbeddingFields(Fields):
    """A request for the vectors of texts."""

    model: str | None = Field(None, description="A model's name or alias; may be left out where there is one model.")
    input: TextsOrIds = Field(
        description="A text, a list of texts (2,048 at most), or token ids of one text or several, which must be those "
        "that the model makes of their text."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`float`: numbers; `base64`: float32, little-endian."
    )
    dimensions: int | None = Field(None, ge=1, description="The model's own number; any other is an error.")
    user: Annotated[str | None, NO_USERS] = None
