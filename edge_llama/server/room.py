"""Whether another model fits beside those that are loaded: by the planner's arithmetic, before a weight is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate
from edge_llama.errors import OptionError
from edge_llama.host import devices
from edge_llama.isolation.remote import IsolatedModel
from edge_llama.model import Model, vision_of
from edge_llama.planning.memory import ContextSize
from edge_llama.planning.options import OpenOptions
from edge_llama.planning.plan import plan_context


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes: its text tower with the context that it gets, and its vision tower's weights."""

    text_bytes: int
    """Of the text tower's weights."""
    context: ContextSize
    vision_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """Of all towers."""
        return self.text_bytes + self.vision_bytes

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.context.needed + self.vision_bytes


def needed(
    path: Path,
    options: OpenOptions,
    loaded: Sequence[tuple[Model, Need]],
    limit: int | None,
    leaving: Sequence[tuple[Model, Need]] = (),
) -> Need | None:
    """What the model at ``path`` takes; None if it would get less beside the ``loaded`` ones than without them.

    All together take at most ``limit`` bytes, and what this machine has, once those that are ``leaving`` have left.
    Raises ArtifactError, and OptionError if the model does not fit even alone: with the numbers, and the largest
    context that does.
    """
    artifact, vision = open_artifact(locate(path)), vision_of(path, options)
    vision_bytes = vision.nbytes if vision else 0

    def need(available: int) -> Need:
        context = plan_context(artifact, options, max(0, available - vision_bytes))
        return Need(artifact.weight_bytes, context, vision_bytes)

    free = devices.available_memory() + sum(_own_bytes(model, need) for model, need in leaving)
    own = [_own_bytes(model, need) for model, need in loaded]
    alone = need(_least(free + sum(own), limit))
    if not loaded:
        return alone
    needs = [need.nbytes for _, need in loaded]
    uncounted = sum(max(0, all_of - counted) for all_of, counted in zip(needs, own, strict=True))
    try:
        beside = need(_least(free - uncounted, None if limit is None else limit - sum(needs)))
    except OptionError:
        return None
    return beside if beside == alone else None


def _least(free: int, limit: int | None) -> int:
    return max(0, free if limit is None else min(free, limit))


def _own_bytes(model: Model, need: Need) -> int:
    """Of what a loaded model takes, that which the system does not call available.

    Weights that are mapped are a file's cache to the system, which it would drop for others: and the next token would
    read them from the disk again.
    """
    if not isinstance(model, IsolatedModel):
        return need.nbytes - need.weight_bytes
    try:
        memory = psutil.Process(model.worker_pid).memory_info()
    except psutil.Error:  # it is dead, or another user's by now
        return 0
    return max(0, int(memory.rss) - int(getattr(memory, "shared", need.weight_bytes)))
