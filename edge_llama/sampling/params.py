"""How the next token is chosen, and where text ends."""

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_llama.errors import OptionError
from edge_llama.prompts.messages import check_text

_MAX_SEED = 2**32 - 2  # llama.cpp takes the next one for "draw a seed"
_MAX_INT = 2**31 - 1
_MAX_BIAS = 1e4  # more would leave no digits of the logit in float32
_MAX_TEMPERATURE = 3.4e38  # finite in float32, which the engine computes in
_MIN_TEMPERATURE = 1e-30  # logits divided by less are infinite in float32


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
    ``stop`` is any iterable of strings that end the answer, kept as a tuple; None is none.
    ``logprobs`` (0 to 20) asks for each token's log-probability and so many of the likeliest tokens', by the model
    itself: the log-softmax of its logits, before any of these settings. None asks for nothing.
    ``json_schema`` (a schema as Python values), ``regex`` (Rust's syntax, for the whole answer) or ``grammar`` (Lark's
    syntax, as llguidance reads it) let the model write only what fits; at most one of them.

    Numbers may be numpy's; they are kept as Python's. OptionError for a value outside its range.
    """

    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int = 64
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    seed: int | None = None
    max_tokens: int | None = None
    stop: Iterable[str] | None = ()
    logprobs: int | None = None
    json_schema: Mapping[str, Any] | bool | None = field(default=None, hash=False)
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        self._number("temperature", 0, _MAX_TEMPERATURE)
        if 0 < self.temperature < _MIN_TEMPERATURE:
            raise OptionError(
                f"temperature is {self.temperature!r}, expected 0 or a number from {_MIN_TEMPERATURE}",
                remedy="0 takes the likeliest token",
            )
        self._whole("top_k", 0, _MAX_INT)
        self._number("top_p", 0, 1)
        self._number("min_p", 0, 1)
        self._number("repetition_penalty", 1e-3, 1e3)
        self._number("frequency_penalty", -100, 100)
        self._number("presence_penalty", -100, 100)
        self._whole("penalty_window", 0, _MAX_INT)
        if self.seed is not None:
            self._whole("seed", 0, _MAX_SEED)
        if self.max_tokens is not None:
            self._whole("max_tokens", 1, _MAX_INT)
        if self.logprobs is not None:
            self._whole("logprobs", 0, 20)
        object.__setattr__(self, "stop", _stop_strings(self.stop))  # the dataclass is frozen
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        _check_one_form(self.json_schema, self.regex, self.grammar)

    @property
    def is_penalizing(self) -> bool:
        """Whether tokens that were there before are treated differently."""
        weights = (self.repetition_penalty - 1, self.frequency_penalty, self.presence_penalty)
        return self.penalty_window > 0 and any(weights)

    def _number(self, name: str, low: float, high: float) -> None:
        object.__setattr__(self, name, check_number(name, getattr(self, name), low, high))

    def _whole(self, name: str, low: int, high: int) -> None:
        object.__setattr__(self, name, check_whole(name, getattr(self, name), low, high))


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


def _biases(biases: object) -> dict[int, float] | None:
    """A copy that nobody else changes."""
    if biases is None:
        return None
    if not isinstance(biases, Mapping):
        raise OptionError(f"logit_bias is {_brief(biases)}, expected a mapping of token ids to numbers")
    return {
        check_whole("a token of logit_bias", token, 0, _MAX_INT): check_number(
            "a value of logit_bias", value, -_MAX_BIAS, _MAX_BIAS
        )
        for token, value in biases.items()
    }


def _check_one_form(json_schema: object, regex: object, grammar: object) -> None:
    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} were given", remedy="an answer can have one of them")
    for name in ("regex", "grammar"):
        if given[name] is not None:
            check_text(given[name], name)


def _stop_strings(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str | bytes):
        raise OptionError("stop is one string, expected a sequence of strings", remedy="put it in a list")
    if not isinstance(stop, Iterable):
        raise OptionError(f"stop is {_brief(stop)}, expected a sequence of strings")
    stops = tuple(stop)
    for text in stops:
        check_text(text, "a stop string")
        if not text:
            raise OptionError("a stop string is empty", remedy="leave it out")
    return stops


class StopStrings:
    """Finds stop strings in text that arrives in pieces, holding back what may be the beginning of one."""

    def __init__(self, stops: Iterable[str] | None) -> None:
        self._stops = tuple(stops or ())
        self._held = ""
        self.reached: str | None = None
        """The stop string that was found."""

    def feed(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was reached; it is not shown)."""
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self._stops if stop in text]
        if found:  # the one that is complete first, so that it does not matter how the text is cut
            self._held = ""
            _, start, self.reached = min(found)
            return text[:start], True
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that begins ``stop``."""
        return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
