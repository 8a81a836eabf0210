"""Requests with different adapters take turns: an engine computes all rows of a decode with the same.

Whose last token is longest ago comes next, and those with the same adapters go with it. A set keeps its turn for a
moment, since the engine plans its graphs anew for another.
"""

import time
from collections.abc import Sequence

from edge_llama.backends.adapters import AdaptedTower, AdapterSet
from edge_llama.backends.base import TextTower
from edge_llama.runtime.batch import Batch, Running

_TURN = 0.04
"""Seconds that a set keeps its turn while others wait: long beside what llama.cpp takes to plan its graphs anew, and
so short that nobody sees an answer stand still for a few turns."""


class AdapterTurns:
    """Whose turn it is. Used by the engine's thread alone."""

    def __init__(self, tower: TextTower) -> None:
        self._tower = tower if isinstance(tower, AdaptedTower) else None
        self._current: AdapterSet = ()
        self._ends = 0.0
        """Until when the current set keeps its turn, by time.monotonic."""

    def order(self, ready: Sequence[Running]) -> list[list[Running]]:
        """``ready`` by their adapters, those whose turn it is first; in each group as they came."""
        groups: dict[AdapterSet, list[Running]] = {}
        for running in ready:
            groups.setdefault(running.request.adapters, []).append(running)
        if len(groups) < 2:
            return list(groups.values())
        kept = self._current if time.monotonic() < self._ends else None
        return [
            groups[adapters]
            for adapters in sorted(groups, key=lambda each: (each != kept, min(one.since for one in groups[each])))
        ]

    def begin(self, batch: Batch) -> None:
        """Have the tower compute with the adapters of ``batch``. EngineError if it can't."""
        adapters = batch[0][0].request.adapters
        if self._tower:
            self._tower.use_adapters(adapters)
        if adapters != self._current:
            self._current, self._ends = adapters, time.monotonic() + _TURN
