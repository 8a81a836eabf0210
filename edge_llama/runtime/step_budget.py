"""How much of waiting prompts goes into a step, so that those who are being answered don't notice.

A step decodes a token for every running answer and some of the prompts that wait. The budget follows what steps take
on this machine: with it a step takes about twice as long as steps will take once those that wait are being answered.
"""

_STRETCH = 2.0
"""How many times longer a step with a part of a prompt may take than one without, once those who wait are answered."""
_LEAST = 16
"""Tokens: fewer would cost as much, since weights are read once for all rows of a batch."""
_WEIGHT = 0.2
"""Of a new measurement in the running average."""


class StepBudget:
    """Measures steps; in the engine's thread."""

    def __init__(self) -> None:
        self._decode: dict[int, float] = {}
        """Seconds of a step with so many running answers and no prompt."""
        self._prefill: float | None = None
        """Seconds for a prompt's token."""

    def tokens(self, running: int, waiting: int = 0) -> int | None:
        """Tokens of prompts for a step in which so many are being answered; None: as many as the batch holds.

        ``waiting``: how many have a prompt that waits.
        """
        if not running:
            return None
        alone, later = self._alone(running), self._alone(running + waiting)
        if self._prefill is None or alone is None or later is None:
            return _LEAST
        return max(_LEAST, int((_STRETCH * max(later, alone) - alone) / self._prefill))

    def measured(self, running: int, prompt_tokens: int, seconds: float) -> None:
        """A step with so many running answers and tokens of prompts took ``seconds``."""
        if not prompt_tokens:
            self._decode[running] = _averaged(self._decode.get(running), seconds)
        elif prompt_tokens >= _LEAST or self._prefill is None:
            alone = (self._alone(running) or 0.0) if running else 0.0
            self._prefill = _averaged(self._prefill, max(seconds - alone, seconds / 10) / prompt_tokens)

    def _alone(self, running: int) -> float | None:
        """What a step takes with so many, as measured with the nearest number."""
        if not self._decode:
            return None
        return self._decode[min(self._decode, key=lambda known: abs(known - running))]


def _averaged(before: float | None, new: float) -> float:
    return new if before is None else (1 - _WEIGHT) * before + _WEIGHT * new
