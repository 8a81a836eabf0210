"""What each kind of server takes and says on ``/v1/completions``: OpenAI's fields, and its own."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edge_llama.backends.remote.values import (
    WrongReplyError,
    a_count,
    a_list,
    a_logprob,
    a_text,
    a_token,
    an_object,
)
from edge_llama.backends.token_stream import Sampled, Usage
from edge_llama.errors import OptionError
from edge_llama.sampling.logprobs import Alternative, TokenLogprobs
from edge_llama.sampling.params import SamplingParams

_FORMS = ("json_schema", "regex", "grammar")
_WINDOW = SamplingParams().penalty_window
"""What penalties look back over unless it is told; servers without such an option look back over what they like."""
_MOST_BIAS = 100.0
_ENDS: Mapping[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}
_AS_ID = re.compile(r"token_id:([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for."""

    model: str
    prompt: Sequence[int]
    params: SamplingParams
    max_tokens: int
    has_form: bool
    """Whether it must fit the schema or expression of ``params``."""
    ends: Sequence[int]
    """Tokens that end an answer."""


class Dialect(ABC):
    """A kind of server: one that says ``token_ids``, and writes tokens as ids where log-probabilities stand.

    So vLLM and our own do.
    """

    name: ClassVar[str]
    forms: ClassVar[tuple[str, ...]] = ()
    """Which of schemas, expressions and grammars it enforces."""
    tells_tokens: ClassVar[bool] = True
    has_window: ClassVar[bool] = False
    """Whether it takes how far penalties look back."""
    most_bias: ClassVar[float] = _MOST_BIAS

    def check(self, params: SamplingParams, where: str) -> None:
        """OptionError, which names it, for an option that this kind does not have."""
        for name, is_given in self._refused(params):
            if is_given:
                raise OptionError(f"{name} is not to be had of {where} ({self.name})", remedy="leave it out")
        for token, bias in (params.logit_bias or {}).items():
            if abs(bias) > self.most_bias:
                raise OptionError(
                    f"logit_bias of token {token} is {bias:g}, {where} ({self.name}) takes -{self.most_bias:g} to "
                    f"{self.most_bias:g}"
                )

    def _refused(self, params: SamplingParams) -> list[tuple[str, bool]]:
        forms = [(name, getattr(params, name) is not None) for name in _FORMS if name not in self.forms]
        schema = params.json_schema
        is_moved = params.is_penalizing and params.penalty_window != _WINDOW and not self.has_window
        return [
            *forms,
            ("json_schema that is true or false", isinstance(schema, bool)),
            ("logits_processor, a Python function,", bool(params.logits_processor)),
            ("penalty_window", is_moved),
        ]

    def fields(self, asked: Asked) -> dict[str, Any]:
        """The request."""
        params = asked.params
        penalties = params if params.is_penalizing else SamplingParams()
        fields: dict[str, Any] = {
            "model": asked.model,
            "prompt": list(asked.prompt),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": asked.max_tokens,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "repetition_penalty": penalties.repetition_penalty,
            "frequency_penalty": penalties.frequency_penalty,
            "presence_penalty": penalties.presence_penalty,
        }
        if params.seed is not None:
            fields["seed"] = params.seed
        if params.logit_bias:
            fields["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
        return fields | self.own_fields(asked) | (self.form_fields(params) if asked.has_form else {})

    @abstractmethod
    def own_fields(self, asked: Asked) -> dict[str, Any]:
        """Fields that this kind has besides, or has under other names."""

    def id_fields(self, asked: Asked) -> dict[str, Any]:
        """Those that have ids told."""
        if asked.params.logprobs is None:
            return {"return_token_ids": True}
        return {"return_token_ids": True, "logprobs": asked.params.logprobs, "return_tokens_as_token_ids": True}

    def form_fields(self, params: SamplingParams) -> dict[str, Any]:
        """Those that ask for a form."""
        return {name: value for name in self.forms if (value := getattr(params, name)) is not None}

    def sampled(self, said: Mapping[str, Any], n_vocab: int, n_logprobs: int | None) -> Sampled:
        """What an event says. WrongReplyError for what is none of this kind's."""
        choices = a_list(said.get("choices"), "choices")
        usage = _usage(said.get("usage"))
        if not choices:
            return Sampled(usage=usage)
        choice = an_object(choices[0], "a choice")
        tokens = self.token_ids(said, choice, n_vocab)
        logprobs = () if n_logprobs is None else self.logprobs(choice.get("logprobs"), n_vocab, n_logprobs)
        named = tuple(entry.token_id for entry in logprobs)
        if logprobs and tokens is not None and named != tokens:
            raise WrongReplyError("log-probabilities are of other tokens than those of the answer")
        is_whole = self.tells_tokens and tokens is not None
        text = None if is_whole else a_text(choice.get("text"), "text")
        return Sampled(named if tokens is None else tokens, text, logprobs, _end(choice.get("finish_reason")), usage)

    def token_ids(self, said: Mapping[str, Any], choice: Mapping[str, Any], n_vocab: int) -> tuple[int, ...] | None:  # noqa: ARG002 - others need it
        """The ids of what is new; None where they are not told."""
        if choice.get("token_ids") is None:
            return None
        return tuple(a_token(each, n_vocab) for each in a_list(choice["token_ids"], "token_ids"))

    def logprobs(self, given: object, n_vocab: int, count: int) -> tuple[TokenLogprobs, ...]:
        """Log-probabilities of what is new, each with the ``count`` likeliest: OpenAI's parallel lists."""
        if given is None:
            return ()
        lists = an_object(given, "logprobs")
        tokens = [_as_token(each, n_vocab) for each in a_list(lists.get("tokens"), "logprobs.tokens")]
        values = list(map(a_logprob, a_list(lists.get("token_logprobs"), "token_logprobs")))
        tops = a_list(lists.get("top_logprobs") or [{}] * len(tokens), "top_logprobs")
        if not len(tokens) == len(values) == len(tops):
            raise WrongReplyError("the lists of log-probabilities differ in length")
        return tuple(
            TokenLogprobs(token, value, _likeliest(an_object(top or {}, "top_logprobs"), n_vocab, count))
            for token, value, top in zip(tokens, values, tops, strict=True)
        )


class EdgeLlama(Dialect):
    """Our own server."""

    name = "edge-llama"
    forms = _FORMS

    def own_fields(self, asked: Asked) -> dict[str, Any]:
        """That the prompt's ids are taken as they are."""
        return {**self.id_fields(asked), "allow_control_tokens": True}


class Vllm(Dialect):
    """vLLM. ``has_structured_outputs``: whether it is as new as 0.11."""

    name = "vLLM"
    forms = ("json_schema", "regex")

    def __init__(self, *, has_structured_outputs: bool = True) -> None:
        self._has_structured_outputs = has_structured_outputs

    def own_fields(self, asked: Asked) -> dict[str, Any]:
        """The end tokens that are known here: it knows those of its generation_config.json alone."""
        return {**self.id_fields(asked), "stop_token_ids": list(asked.ends)}

    def form_fields(self, params: SamplingParams) -> dict[str, Any]:
        """``structured_outputs``; before 0.11 fields of their own."""
        kind, value = ("json", params.json_schema) if params.json_schema is not None else ("regex", params.regex)
        return {"structured_outputs": {kind: value}} if self._has_structured_outputs else {f"guided_{kind}": value}


class LlamaServer(Dialect):
    """llama.cpp's. Of tokens that end within a character it tells nothing, so its text is what counts."""

    name = "llama-server"
    forms = ("json_schema",)
    tells_tokens = False
    has_window = True
    most_bias = 1e4

    def own_fields(self, asked: Asked) -> dict[str, Any]:
        """Its own names; ``verbose`` adds a token's id to each event, ``response_fields`` keeps the last one small."""
        params = asked.params
        penalties = params if params.is_penalizing else SamplingParams()
        fields: dict[str, Any] = {
            "repeat_penalty": penalties.repetition_penalty,
            "repeat_last_n": params.penalty_window,
            "verbose": True,
            "response_fields": ["tokens", "tokens_predicted", "stop_type"],
        }
        return fields if params.logprobs is None else {**fields, "logprobs": max(params.logprobs, 1)}

    def token_ids(self, said: Mapping[str, Any], choice: Mapping[str, Any], n_vocab: int) -> tuple[int, ...] | None:  # noqa: ARG002 - the base's
        """``__verbose.tokens``."""
        more = said.get("__verbose")
        if not isinstance(more, dict) or not isinstance(more.get("tokens"), list):
            return None
        return tuple(a_token(each, n_vocab) for each in more["tokens"])

    def logprobs(self, given: object, n_vocab: int, count: int) -> tuple[TokenLogprobs, ...]:
        """Chat completions' form, with ids."""
        if given is None:
            return ()
        entries = a_list(an_object(given, "logprobs").get("content"), "logprobs.content")
        return tuple(_entry(an_object(entry, "logprobs.content"), n_vocab, count) for entry in entries)


class Other(Dialect):
    """A server of another kind, or one behind something that hides its kind: text alone, and no forms."""

    name = "a server of a kind that is not known here"

    def own_fields(self, asked: Asked) -> dict[str, Any]:
        """That ids are told, if it can: some that serve vLLM's models don't say so."""
        return self.id_fields(asked)

    def _refused(self, params: SamplingParams) -> list[tuple[str, bool]]:
        return [*super()._refused(params), ("logprobs", params.logprobs is not None)]


def _as_token(text: object, n_vocab: int) -> int:
    found = _AS_ID.fullmatch(a_text(text, "a token of logprobs"))
    if not found:
        raise WrongReplyError(f"a token of logprobs is {text!r:.60}, expected token_id:N")
    return a_token(int(found[1]), n_vocab)


def _likeliest(top: Mapping[str, Any], n_vocab: int, count: int) -> tuple[Alternative, ...]:
    """The ``count`` likeliest; the sampled token may be there besides."""
    found = [Alternative(_as_token(text, n_vocab), a_logprob(value)) for text, value in top.items()]
    return _best(found, count)


def _best(found: list[Alternative], count: int) -> tuple[Alternative, ...]:
    return tuple(sorted(found, key=lambda each: (-each.logprob, each.token_id))[:count])


def _entry(entry: Mapping[str, Any], n_vocab: int, count: int) -> TokenLogprobs:
    tops = (an_object(each, "top_logprobs") for each in a_list(entry.get("top_logprobs"), "top_logprobs"))
    found = [Alternative(a_token(each.get("id"), n_vocab), a_logprob(each.get("logprob"))) for each in tops]
    return TokenLogprobs(a_token(entry.get("id"), n_vocab), a_logprob(entry.get("logprob")), _best(found, count))


def _end(reason: object) -> Literal["stop", "length"] | None:
    if reason is None:
        return None
    if not isinstance(reason, str) or reason not in _ENDS:
        raise WrongReplyError(f"the answer ended by {reason!r:.60}")
    return _ENDS[reason]


def _usage(given: object) -> Usage | None:
    if given is None:
        return None
    usage = an_object(given, "usage")
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(
        None if cached is None else a_count(cached, "cached_tokens"),
        a_count(usage.get("completion_tokens"), "completion_tokens"),
    )
