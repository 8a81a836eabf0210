"""How the next token is chosen, and where text ends."""

import numbers
from collections.abc import Iterable
from dataclasses import dataclass

from edge_llama.errors import OptionError
from edge_llama.messages import check_text

_MAX_SEED = 2**32 - 1
_MAX_INT = 2**31 - 1
_MAX_TEMPERATURE = 3.4e38  # finite in float32, which the engine computes in
_MIN_TEMPERATURE = 1e-30  # logits divided by less are infinite in float32


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Choices for one answer, applied in this order: repetition penalty, top_k, top_p, min_p, temperature.

    ``temperature`` 0 takes the likeliest token; others are from 1e-30 to 3.4e38.
    ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 leave all tokens in.
    ``repetition_penalty`` 1 is none; it looks back over ``penalty_window`` tokens, the prompt's included.
    Temperature and top_p are Meta's own defaults for Llama; a model file may carry its publisher's.
    ``seed`` None draws one. The same seed gives the same answer with the same model file, on the same machine, after
    the same text was read before: with quantized weights, what the KV cache already holds changes how many tokens are
    read at once and so the rounding, which can tip the choice between two tokens that are about as likely.
    ``max_tokens`` None goes on until the model ends or the context is full.
    ``stop`` is any iterable of strings that end the answer, kept as a tuple; None is none.

    Numbers may be numpy's; they are kept as Python's. OptionError for a value outside its range.
    """

    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    penalty_window: int = 64
    seed: int | None = None
    max_tokens: int | None = None
    stop: Iterable[str] | None = ()

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
        self._whole("penalty_window", 0, _MAX_INT)
        if self.seed is not None:
            self._whole("seed", 0, _MAX_SEED)
        if self.max_tokens is not None:
            self._whole("max_tokens", 1, _MAX_INT)
        object.__setattr__(self, "stop", _stop_strings(self.stop))  # the dataclass is frozen

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

    def feed(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was reached; it is not shown)."""
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        if found:  # the one that is complete first, so that it does not matter how the text is cut
            self._held = ""
            return text[: min(found)[1]], True
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
