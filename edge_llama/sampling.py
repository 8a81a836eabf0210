"""How the next token is chosen, and where text ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_llama.errors import OptionError
from edge_llama.messages import check_text

_MAX_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Choices for one answer, applied in this order: repetition penalty, top_k, top_p, min_p, temperature.

    ``temperature`` 0 takes the likeliest token. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 leave all tokens in.
    ``repetition_penalty`` 1 is none; it looks back over ``penalty_window`` tokens, the prompt's included.
    Temperature and top_p are Meta's own defaults for Llama; a model file may carry its publisher's.
    ``seed`` None draws one. ``max_tokens`` None goes on until the model ends or the context is full.
    """

    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    penalty_window: int = 64
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf)
        _check("top_k", self.top_k, 0, 2**31 - 1, whole=True)
        _check("top_p", self.top_p, 0, 1)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        _check("penalty_window", self.penalty_window, 0, 2**31 - 1, whole=True)
        if self.seed is not None:
            _check("seed", self.seed, 0, _MAX_SEED, whole=True)
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens, 1, 2**31 - 1, whole=True)
        if isinstance(self.stop, str):
            raise OptionError("stop is one string, expected a sequence of strings", remedy="put it in a list")
        for text in self.stop:
            check_text(text, "a stop string")
            if not text:
                raise OptionError("a stop string is empty", remedy="leave it out")


def _check(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high or value == math.inf:
        expected = "a whole number" if whole else "a number"
        span = f"from {low} to {high}" if high != math.inf else f"of at least {low}"
        raise OptionError(f"{name} is {value!r}, expected {expected} {span}")


class StopStrings:
    """Finds stop strings in text that arrives in pieces, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
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
