"""The seam between the runtime and models that run elsewhere: tokens that were sampled there, in place of logits."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.sampling.logprobs import TokenLogprobs
from edge_llama.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server says that an answer took; None where it says nothing."""

    cached_tokens: int | None = None
    """Of the prompt, those that were not read again."""
    generated_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """What is new of an answer whose tokens are sampled elsewhere."""

    tokens: tuple[int, ...] = ()
    """Ids, at last the end token where it is told: nothing follows such."""
    text: str | None = None
    """Where not every token's id is told: the text of what is new, and ``tokens`` has those that are known, the last
    one at its end. None: the ids say all."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of ``tokens``, each or none."""
    end: Literal["stop", "length"] | None = None
    """Why nothing follows."""
    usage: Usage | None = None


class TokenStream(Protocol):
    """A model that runs elsewhere: tokens in, tokens out, sampled there. Used in one event loop, by many tasks.

    The counterpart of a :class:`edge_llama.backends.base.TextTower`, which gives logits.
    """

    @property
    def url(self) -> str:
        """Where it is."""

    @property
    def model(self) -> str:
        """What it is called there."""

    @property
    def engine(self) -> str:
        """What serves it, for people."""

    @property
    def n_ctx(self) -> int:
        """Positions that a prompt and its answer may take together."""

    @property
    def most_tokens(self) -> int | None:
        """Tokens that an answer may have at most; None: what the context holds."""

    @property
    def tells_tokens(self) -> bool:
        """Whether the id of every token is told."""

    def check(self, params: SamplingParams) -> None:
        """OptionError, which names it, for an option that is not to be had there."""

    def tokens(
        self, prompt: Sequence[int], params: SamplingParams, max_tokens: int, *, has_form: bool
    ) -> AsyncGenerator[Sampled, None]:
        """What follows ``prompt``; the last has an ``end``. Closing it ends the work there.

        ``has_form``: by the schema or regular expression of ``params``. Raises RemoteError, or OptionError for a
        request that is refused.
        """

    async def close(self) -> None:
        """Give up all connections."""


class RemoteEngine(Protocol):
    """An engine whose models are asked for by a URL."""

    async def connect(
        self, url: str, *, model: str | None, vocabulary: Tokenizer, n_ctx: int | None, key_variable: str | None
    ) -> TokenStream:
        """Find the ``model`` at ``url`` (None: the only one), whose tokens are those of ``vocabulary``.

        ``key_variable`` names the environment variable with the key (None: the usual one, if it is set). OptionError
        for what is not so, or if a package is missing; RemoteError for a server that doesn't answer, or wrongly.
        """
