"""How the next token is chosen: the options of one answer."""

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import OptionError, check_known
from edge_llama.files.artifact import Recommended
from edge_llama.prompts.messages import check_text
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.sampling.option_text import (
    OptionText,
    is_schema,
    parse_biases,
    parse_json,
    split_biases,
    split_stops,
)

_T = TypeVar("_T")
_MAX_SEED = 2**32 - 2  # llama.cpp takes the next one for "draw a seed"
_MAX_INT = 2**31 - 1
_MAX_BIAS = 1e4  # more would leave no digits of the logit in float32
_MAX_STOPS = 64  # all are looked for in each piece of text, between two steps of the engine
_MAX_TEMPERATURE = 3.4e38  # finite in float32, which the engine computes in
_MIN_TEMPERATURE = 1e-30  # logits divided by less are infinite in float32

LogitsProcessor: TypeAlias = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]
"""``processor(token_ids, logits)`` gives the logits that a token is chosen by.

``token_ids`` are the prompt's (without the places of images) and the answer's so far; ``logits``, float32
``(n_vocab,)``, are a copy that may be changed and returned. Numbers up to 1e8 and ``-inf`` (never) may come back. It is
called in the engine's thread; what it raises ends the answer as an OptionError.

Examples:
    >>> def no_tokyo(token_ids, logits):
    ...     logits[model.tokenizer.encode(" Tokyo")[0]] = -np.inf
    ...     return logits
    >>> chat = model.chat(temperature=0, max_tokens=20)
    >>> "Tokyo" in chat.send("What is the capital of Japan?", logits_processor=no_tokyo).result().text
    False
"""

_Check: TypeAlias = Callable[[str, Any], Any]
"""``check(name, value)``: the value as it is kept; OptionError unless it is one that the option takes."""


class SamplingOptions(TypedDict, total=False):
    """The fields of :class:`SamplingParams` as keyword arguments, each of which may be left out.

    Examples:
        >>> greedy: edge_llama.SamplingOptions = {"temperature": 0, "max_tokens": 20}
        >>> model.chat(**greedy).send("Say 5.").result().text
        '5'
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_window: int
    logit_bias: Mapping[int, float] | None
    seed: int | None
    max_tokens: int | None
    thinking_budget: int | None
    stop: Iterable[str] | None
    logprobs: int | None
    json_schema: Mapping[str, Any] | bool | None
    regex: str | None
    grammar: str | None
    logits_processor: LogitsProcessor | Iterable[LogitsProcessor] | None


def check_number(name: str, value: object, low: float, high: float) -> float:
    """``value`` as a float, also if it is numpy's; OptionError unless it is a number from ``low`` to ``high``."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and bool(low <= value <= high):  # type: ignore[operator]
        return float(value)
    raise OptionError(f"{name} is {_brief(value)}, expected a number from {low} to {high}")


def check_whole(name: str, value: object, low: int, high: int) -> int:
    """``value`` as an int, also if it is numpy's; OptionError unless it is whole and from ``low`` to ``high``."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= int(value) <= high:
        return int(value)
    raise OptionError(f"{name} is {_brief(value)}, expected a whole number from {low} to {high}")


def _brief(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text):,} characters)"


def _temperature(name: str, value: object) -> float:
    temperature = check_number(name, value, 0, _MAX_TEMPERATURE)
    if 0 < temperature < _MIN_TEMPERATURE:
        raise OptionError(
            f"temperature is {temperature!r}, expected 0 or a number from {_MIN_TEMPERATURE}",
            remedy="0 takes the likeliest token",
        )
    return temperature


def _text(name: str, value: object) -> object:
    check_text(value, name)
    return value


def _processors(name: str, given: object) -> tuple[LogitsProcessor, ...]:
    if given is None:
        return ()
    found = (given,) if callable(given) else tuple(given) if isinstance(given, Iterable) else (given,)
    for processor in found:
        if not callable(processor):
            raise OptionError(
                f"{name} is {_brief(processor)}, expected a function over token ids and logits, or several"
            )
    return found


def _biases(_name: str, biases: object) -> dict[int, float]:
    """A copy that nobody else changes."""
    if not isinstance(biases, Mapping):
        raise OptionError(f"logit_bias is {_brief(biases)}, expected a mapping of token ids to numbers")
    return {
        check_whole("a token of logit_bias", token, 0, _MAX_INT): check_number(
            "a value of logit_bias", value, -_MAX_BIAS, _MAX_BIAS
        )
        for token, value in biases.items()
    }


def _stop_strings(_name: str, stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str | bytes):
        raise OptionError("stop is one string, expected a sequence of strings", remedy="put it in a list")
    if not isinstance(stop, Iterable):
        raise OptionError(f"stop is {_brief(stop)}, expected a sequence of strings")
    stops = tuple(stop)
    if len(stops) > _MAX_STOPS:
        raise OptionError(f"stop has {len(stops):,} strings, expected at most {_MAX_STOPS}", remedy="leave some out")
    for text in stops:
        check_text(text, "a stop string")
        if not text:
            raise OptionError("a stop string is empty", remedy="leave it out")
    return stops


def _number(low: float, high: float) -> _Check:
    return lambda name, value: check_number(name, value, low, high)


def _whole(low: int, high: int) -> _Check:
    return lambda name, value: check_whole(name, value, low, high)


def _as_given(_name: str, value: Any) -> Any:
    return value


def _or_none(check: _Check) -> _Check:
    return lambda name, value: None if value is None else check(name, value)


def _option(check: _Check, text: OptionText | None = None) -> dict[str, Any]:
    """A field's metadata: what it takes, and how people write it, if they may."""
    return {"check": check, "text": text}


def _names_the_nearest(kind: type[_T]) -> type[_T]:
    """A dataclass that tells of an unknown field as our options do, in place of Python's words about ``__init__``."""
    plain = kind.__init__

    @wraps(plain)
    def checked(self: _T, *args: Any, **options: Any) -> None:
        check_known(options, kind.__slots__, kind.__name__)  # type: ignore[attr-defined] # it is one with slots
        plain(self, *args, **options)

    kind.__init__ = checked  # type: ignore[assignment]
    return kind


@_names_the_nearest
@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Choices for one answer, applied in llama.cpp's order: logit_bias, penalties, top_k, top_p, min_p, temperature.

    ``temperature`` 0 takes the likeliest token; others are from 1e-30 to 3.4e38.
    ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 leave all tokens in.
    ``repetition_penalty`` 1 is none: logits of tokens that were there before are divided by it (negative ones are
    multiplied). ``frequency_penalty`` is subtracted for each time a token was there, ``presence_penalty`` once; 0 is
    none. All three look back over ``penalty_window`` tokens, the prompt's included.
    ``logit_bias`` adds to the logits of token ids, from -10,000 (never, unless nothing else is left) to 10,000.
    Temperature and top_p are Meta's own defaults for Llama; a model file may carry its publisher's.
    ``seed`` None draws one. The same seed gives the same answer with the same model file, on the same machine, after
    the same text was read before: with quantized weights, what the KV cache already holds changes how many tokens are
    read at once and so the rounding, which can tip the choice between two tokens that are about as likely.
    ``max_tokens`` None goes on until the model ends or the context is full.
    ``stop`` is any iterable of up to 64 strings that end the answer, kept as a tuple; None is none.
    ``logprobs`` (0 to 20) asks for each token's log-probability and so many of the likeliest tokens', by the model
    itself: the log-softmax of its logits, before any of these settings. None asks for nothing.
    ``json_schema`` (a schema as Python values), ``regex`` (Rust's syntax, for the whole answer) or ``grammar`` (Lark's
    syntax, as llguidance reads it) let the model write only what fits; at most one of them.
    ``logits_processor`` is a function over each token's logits, or several in order, before all of these settings (see
    :data:`LogitsProcessor`); kept as a tuple, None is none.

    Numbers may be numpy's; they are kept as Python's. OptionError for a value outside its range.

    Examples:
        >>> edge_llama.SamplingParams(temperature=0.8, top_p=0.95, seed=1).top_k
        40
        >>> model.sampling({"max_tokens": 20}).max_tokens  # on top of what the model's publisher recommends
        20
        >>> edge_llama.SamplingParams(top_p=2)
        Traceback (most recent call last):
        edge_llama.errors.OptionError: top_p is 2, expected ...
    """

    temperature: float = field(
        default=0.6,
        metadata=_option(
            _temperature, OptionText(kind=float, help="0 takes the likeliest token; higher is more varied.")
        ),
    )
    top_k: int = field(
        default=40,
        metadata=_option(
            _whole(0, _MAX_INT), OptionText(kind=int, help="Choose among the K likeliest tokens; 0: all.")
        ),
    )
    top_p: float = field(
        default=0.9,
        metadata=_option(
            _number(0, 1),
            OptionText(kind=float, help="Choose among the likeliest tokens that make up this probability."),
        ),
    )
    min_p: float = field(
        default=0.05,
        metadata=_option(
            _number(0, 1), OptionText(kind=float, help="Leave out tokens less likely than this share of the likeliest.")
        ),
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata=_option(_number(1e-3, 1e3), OptionText(kind=float, help="Above 1: recent tokens become less likely.")),
    )
    frequency_penalty: float = field(
        default=0.0,
        metadata=_option(
            _number(-100, 100),
            OptionText(kind=float, help="Above 0: tokens become less likely each time that they come."),
        ),
    )
    presence_penalty: float = field(
        default=0.0,
        metadata=_option(
            _number(-100, 100), OptionText(kind=float, help="Above 0: tokens that have come before become less likely.")
        ),
    )
    penalty_window: int = field(
        default=64,
        metadata=_option(_whole(0, _MAX_INT), OptionText(kind=int, help="Tokens that the penalties look back over.")),
    )
    logit_bias: Mapping[int, float] | None = field(
        default=None,
        hash=False,
        metadata=_option(
            _or_none(_biases),
            OptionText(
                metavar="ID=VALUE",
                is_repeated=True,
                parse=parse_biases,
                split=split_biases,
                help="Add to the logit of a token, from -10000 to 10000. May be repeated.",
            ),
        ),
    )
    seed: int | None = field(
        default=None,
        metadata=_option(
            _or_none(_whole(0, _MAX_SEED)),
            OptionText(
                kind=int,
                help="The same seed gives the same answer with the same model file, on the same machine, "
                "after the same text was read before.",
            ),
        ),
    )
    max_tokens: int | None = field(
        default=None,
        metadata=_option(
            _or_none(_whole(1, _MAX_INT)), OptionText(kind=int, help="End the answer after so many tokens.")
        ),
    )
    thinking_budget: int | None = field(
        default=None,
        metadata=_option(
            _or_none(_whole(0, _MAX_INT)),
            OptionText(
                kind=int, metavar="N", help="After so many tokens of thought the model has to answer, if it thinks."
            ),
        ),
    )
    stop: Iterable[str] | None = field(
        default=(),
        metadata=_option(
            _stop_strings,
            OptionText(
                is_repeated=True,
                split=split_stops,
                help="End the answer before this text. May be repeated: up to 64.",
            ),
        ),
    )
    logprobs: int | None = field(
        default=None,
        metadata=_option(
            _or_none(_whole(0, 20)),
            OptionText(
                kind=int,
                metavar="N",
                help="Each token's log-probability and the N likeliest at its place, by the model itself, before any "
                "sampling option: on stderr, or in --json.",
            ),
        ),
    )
    json_schema: Mapping[str, Any] | bool | None = field(
        default=None,
        hash=False,
        metadata=_option(
            _as_given,
            OptionText(
                metavar="FILE",
                is_file=True,
                is_inline=is_schema,
                parse=parse_json,
                help="The answer is JSON that fits this schema.",
            ),
        ),
    )
    regex: str | None = field(
        default=None,
        metadata=_option(_or_none(_text), OptionText(help="The whole answer fits this regular expression.")),
    )
    grammar: str | None = field(
        default=None,
        metadata=_option(
            _or_none(_text),
            OptionText(metavar="FILE", is_file=True, help="The answer fits this grammar in Lark's syntax."),
        ),
    )
    logits_processor: LogitsProcessor | Iterable[LogitsProcessor] | None = field(
        default=(), metadata=_option(_processors)
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = each.metadata["check"](each.name, getattr(self, each.name))
            object.__setattr__(self, each.name, value)  # the dataclass is frozen
        _check_one_form(self.json_schema, self.regex, self.grammar)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "SamplingParams":
        """The params of these options. OptionError also for one that is unknown."""
        return cls(**options)

    @property
    def is_penalizing(self) -> bool:
        """Whether tokens that were there before are treated differently."""
        weights = (self.repetition_penalty - 1, self.frequency_penalty, self.presence_penalty)
        return self.penalty_window > 0 and any(weights)


OPTION_TEXTS: dict[str, OptionText] = {
    each.name: each.metadata["text"] for each in fields(SamplingParams) if each.metadata["text"]
}
"""How people write options, by their names: of all but those that are functions."""


def _check_one_form(json_schema: object, regex: object, grammar: object) -> None:
    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} were given", remedy="an answer can have one of them")


def recommended(entries: Iterable[Recommended], on_refused: Callable[[str], None]) -> dict[str, Any]:
    """The options that a model's publisher recommends; ``on_refused`` is told why one can't be used and is left out."""
    options: dict[str, Any] = {}
    for entry in entries:
        value: Any = 0 if entry.option == "top_k" and _is_all(entry.value) else entry.value
        try:
            options[entry.option] = getattr(SamplingParams(**{entry.option: value}), entry.option)
        except OptionError as error:
            on_refused(f"{entry.called} is ignored: {error}")
    return options


def _is_all(top_k: object) -> bool:
    """Whether a file's ``top_k`` means all tokens: publishers write -1 as well as 0."""
    return isinstance(top_k, int) and not isinstance(top_k, bool) and top_k <= 0


def check_biases(params: SamplingParams, tokenizer: Tokenizer) -> None:
    """OptionError if ``logit_bias`` names a token that is not there."""
    for token in params.logit_bias or ():
        if token >= tokenizer.n_vocab:
            raise OptionError(
                f"logit_bias: there is no token {token}", remedy=f"ids are from 0 to {tokenizer.n_vocab - 1:,}"
            )
