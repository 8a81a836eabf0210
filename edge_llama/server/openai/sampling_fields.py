"""How the next token is chosen, as OpenAI's interfaces say it, chat or not."""

from typing import Annotated, Any, TypeAlias

from pydantic import Field, Tag

from edge_llama.server.asking import SEEDS
from edge_llama.server.fields import Fields, by_type
from edge_llama.server.openai.marks import NOTHING_HIDDEN

_Bias: TypeAlias = Annotated[float, Field(ge=-100, le=100)]
_TokenId: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
_Biases: TypeAlias = Annotated[dict[_TokenId, _Bias], Field(json_schema_extra={"additionalProperties": False})]
_Stop: TypeAlias = Annotated[
    Annotated[str, Field(min_length=1), Tag("<str>")]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16), Tag("<list>")],
    by_type("a text, or a list of texts"),
]
_SAME = (
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "top_k",
    "min_p",
    "repetition_penalty",
    "regex",
    "grammar",
)
"""Fields that the runtime takes as they are."""


class StreamOptions(Fields):
    """What a stream tells besides."""

    include_usage: bool | None = Field(None, description="A last chunk with `usage` and no choices.")
    include_obfuscation: Annotated[bool | None, NOTHING_HIDDEN] = None


class SamplingFields(Fields):
    """The fields that requests have in common. What is left out is as the model's publisher recommends."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float | None = Field(None, ge=0, le=1, description="Among the likeliest tokens of this probability.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Over the last 64 tokens.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Over the last 64 tokens.")
    logit_bias: _Biases | None = Field(
        None, description="Added to the logits of tokens, by this model's own ids (see `/tokenize`)."
    )
    seed: int | None = Field(
        None, description=f"The same seed gives the same answer on the same machine; counted modulo {SEEDS:,}."
    )
    stop: _Stop | None = Field(None, description="One text or up to 16, which end the answer and are not in it.")
    top_k: int | None = Field(None, ge=0, description="An extension: among the K likeliest tokens; 0: all.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="An extension: no token less likely than this share of the likeliest."
    )
    repetition_penalty: float | None = Field(
        None, ge=1e-3, le=1e3, description="An extension: above 1, recent tokens become less likely."
    )
    regex: str | None = Field(None, description="An extension: the whole answer fits this regular expression.")
    grammar: str | None = Field(None, description="An extension: the answer fits this grammar in Lark's syntax.")

    def options(self) -> dict[str, Any]:
        """:class:`edge_llama.RequestOptions`."""
        given = {name: getattr(self, name) for name in _SAME}
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        if self.seed is not None:
            given["seed"] = self.seed % SEEDS
        if self.stop is not None:
            given["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        return {name: value for name, value in given.items() if value is not None}
