"""What an engine is doing, in numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """What the engine is doing, and what it has done since it was opened.

    Examples:
        >>> stats = model.stats()
        >>> stats.running, stats.queued, stats.used_cells <= stats.cells
        (0, 0, True)
    """

    running: int
    """Requests that are prefilled or answered."""
    max_running: int
    """How many it serves at once: 1 where the engine decodes one conversation after the other."""
    queued: int
    """Requests that wait for their turn."""
    used_cells: int
    """Positions of the KV cache that sequences take, running or idle."""
    cells: int
    """Positions that it has."""
    cached_bytes: int
    """Memory that copies of sequences take, and embeddings of pictures that are kept."""
    prompt_tokens: int
    """Tokens that were prefilled."""
    generated_tokens: int
    """Tokens that were decoded one by one."""
    seconds: float
    """Time in which the engine was at work."""


@dataclass(slots=True)
class Counts:
    """What adds up over the time. Written by the engine's thread."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
