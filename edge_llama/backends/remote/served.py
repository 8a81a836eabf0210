"""One model of a server: which it is, how it is asked, and what comes back."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from edge_llama.backends.base import first_of
from edge_llama.backends.remote.client import Client
from edge_llama.backends.remote.dialects import Asked, Dialect, EdgeLlama, LlamaServer, Other, Vllm
from edge_llama.backends.remote.same_vocabulary import check_vocabulary
from edge_llama.backends.remote.values import WrongReplyError, a_count, a_list, a_text, an_object
from edge_llama.backends.token_stream import Sampled
from edge_llama.errors import OptionError, RemoteError
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.sampling.params import SamplingParams

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_MOST_NAMES = 20
_SECONDS_FOR_USAGE = 5.0
_OURS, _VLLM, _LLAMA_SERVER = "edge-llama", "vllm", "llamacpp"
"""What these servers write under ``owned_by``."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as ``/models`` lists it; None for what it doesn't say."""

    name: str
    owner: str
    n_ctx: int | None
    most_tokens: int | None
    n_vocab: int | None
    parent: str = ""
    """What it is an adapter for."""
    is_alias: bool = False


class ServedModel:
    """Keeps the Protocol :class:`edge_llama.backends.token_stream.TokenStream`."""

    def __init__(self, client: Client, dialect: Dialect, listed: Listed, vocabulary: Tokenizer, n_ctx: int) -> None:
        self.url = str(client.address)
        self.model = listed.name
        self.engine = dialect.name
        self.n_ctx = n_ctx
        self.most_tokens = listed.most_tokens
        self.tells_tokens = dialect.tells_tokens
        self._client = client
        self._dialect = dialect
        self._n_vocab = vocabulary.n_vocab
        self._is_end = vocabulary.is_end
        self._ends = [token for token in vocabulary.control_tokens.values() if vocabulary.is_end(token)]

    def check(self, params: SamplingParams) -> None:
        """OptionError, which names it, for an option that is not to be had there."""
        self._dialect.check(params, self.url)

    async def tokens(
        self, prompt: Sequence[int], params: SamplingParams, max_tokens: int, *, has_form: bool
    ) -> AsyncGenerator[Sampled, None]:
        """What follows; the last has an end, and the usage that the server tells of after it."""
        asked = Asked(self.model, prompt, params, max_tokens, has_form, self._ends)
        events = self._client.events(f"{self.url}/completions", self._dialect.fields(asked))
        count = 0
        async with aclosing(events):
            async for said in events:
                new = _understood(self._client, partial(self._sampled, said, params.logprobs))
                count += len(new.tokens)
                if end := new.end or self._own_end(new, count >= max_tokens):
                    yield await self._with_usage(replace(new, end=end), events)
                    return
                yield new
        raise self._client.error("the answer broke off", remedy="see whether the server died")

    def _own_end(self, new: Sampled, is_full: bool) -> Literal["stop", "length"] | None:
        """Where the server must end, though it has not said so yet; one that goes on is not listened to."""
        if new.tokens and self._is_end(new.tokens[-1]):
            return "stop"
        return "length" if is_full else None

    async def _with_usage(self, last: Sampled, events: AsyncIterator[Any]) -> Sampled:
        """The end of an answer with what is told after it, if that comes soon: the answer is whole without."""
        with suppress(TimeoutError, RemoteError, WrongReplyError):
            async with asyncio.timeout(_SECONDS_FOR_USAGE):
                async for said in events:
                    new = self._sampled(said, None)
                    if new.tokens and new.end is None:
                        break
                    end = new.end if new.end and last.end == "length" else last.end  # it knows what its form allows
                    last = replace(last, end=end, usage=new.usage or last.usage)
        return last

    async def close(self) -> None:
        """Give up all connections."""
        await self._client.close()

    def _sampled(self, said: object, n_logprobs: int | None) -> Sampled:
        event = an_object(said, "an event")
        if (problem := event.get("error")) is not None:
            text = problem.get("message") if isinstance(problem, dict) else problem
            raise self._client.error(f"failed: {str(text)[:300]}")
        return self._dialect.sampled(event, self._n_vocab, n_logprobs)


async def found(client: Client, name: str | None, vocabulary: Tokenizer, n_ctx: int | None) -> ServedModel:
    """The model called ``name`` (None: the only one), once it is sure that both mean the same by an id.

    OptionError if there is none or several, it has another vocabulary, or how much context it has is not known;
    RemoteError.
    """
    listed = _meant(client, await _listed(client), name)
    dialect = await _dialect(client, listed)
    is_tokenizing = await check_vocabulary(client, listed.name, listed.owner == _VLLM, vocabulary, listed.n_vocab)
    if listed.n_ctx is None and is_tokenizing:  # our server loads a model with the first question about it
        listed = _meant(client, await _listed(client), listed.name)
    return ServedModel(client, dialect, listed, vocabulary, _context(client, listed, n_ctx))


async def _listed(client: Client) -> list[Listed]:
    content = await client.get(f"{client.address}/models")
    return _understood(client, partial(_models, content))


def _models(content: object) -> list[Listed]:
    """What is listed; an adapter has the context of the model that it is for."""
    entries = a_list(an_object(content, "the list of models").get("data"), "data")
    found = {each.name: each for each in (_model(an_object(entry, "a model")) for entry in entries)}
    return [
        replace(each, n_ctx=found[each.parent].n_ctx) if each.n_ctx is None and each.parent in found else each
        for each in found.values()
    ]


def _model(entry: Mapping[str, Any]) -> Listed:
    """Of vLLM, llama-server and our own each says under a name of its own how much context there is."""
    name, owner, parent = a_text(entry.get("id"), "a model's id"), entry.get("owned_by"), entry.get("parent")
    meta, ours = (each if isinstance(each, dict) else {} for each in (entry.get("meta"), entry.get("edge_llama")))
    sizes = ours.get("n_ctx"), entry.get("max_model_len"), meta.get("n_ctx")
    return Listed(
        name,
        owner if isinstance(owner, str) else "",
        _count(next((each for each in sizes if each is not None), None), "the context's size"),
        _count(ours.get("max_tokens"), "max_tokens"),
        _count(meta.get("n_vocab"), "n_vocab"),
        parent if isinstance(parent, str) else "",
        name in a_list(ours.get("aliases", []), "aliases"),
    )


def _count(value: object, what: str) -> int | None:
    return None if value is None else a_count(value, what)


def _meant(client: Client, listed: Sequence[Listed], name: str | None) -> Listed:
    """The one called ``name``, else the only one: that one has several names counts for nothing."""
    named = [each for each in listed if (not each.is_alias if name is None else each.name == name)]
    if len(named) == 1:
        return named[0]
    names = first_of([each.name for each in listed], _MOST_NAMES) or "none"
    if name is not None:
        raise OptionError(f"{client.address}: there is no model {name!r:.100}", remedy=f"it has {names}")
    raise OptionError(
        f"{client.address}: serves {len(named):,} models: {names}",
        remedy='name one: open(URL, model="NAME"), --remote-model NAME',
    )


async def _dialect(client: Client, listed: Listed) -> Dialect:
    if listed.owner == _OURS:
        return EdgeLlama()
    if listed.owner == _LLAMA_SERVER:
        return LlamaServer()
    if listed.owner == _VLLM:
        return Vllm(has_structured_outputs=await _is_vllm_since_0_11(client))
    _log.warning(
        "%s: a server of a kind that is not known here (owned_by %s): only text is taken from it",
        client.address,
        listed.owner[:60] or "nobody",
    )
    return Other()


async def _is_vllm_since_0_11(client: Client) -> bool:
    """Also where the version is not told, or none of numbers: what is new is asked for then."""
    try:
        said = await client.get(f"{client.address.root}/version")
        major, minor = an_object(said, "the version")["version"].split(".")[:2]
        return (int(major), int(minor)) >= (0, 11)
    except (RemoteError, OptionError, WrongReplyError, KeyError, ValueError, AttributeError) as error:
        _log.info("%s: its version is not known: %s", client.address, error)
        return True


def _context(client: Client, listed: Listed, asked: int | None) -> int:
    """As asked, but no more than there is."""
    there = listed.n_ctx
    if asked is None:
        if there is None:
            raise OptionError(
                f"{client.address}: does not say how many tokens of context {listed.name} has",
                remedy="give their number: n_ctx= (--n-ctx)",
            )
        return there
    if there is not None and asked > there:
        raise OptionError(
            f"n_ctx is {asked:,}, but {listed.name} has {there:,} tokens of context at {client.address}",
            remedy="give no more, or leave it out",
        )
    return asked


def _understood(client: Client, read: Callable[[], _T]) -> _T:
    """What ``read`` makes of a server's words. RemoteError if it can't."""
    try:
        return read()
    except WrongReplyError as error:
        raise client.error(f"sends what is not understood: {error}") from error
