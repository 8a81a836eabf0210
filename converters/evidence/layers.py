"""One layer of a text tower at a time: hidden states in, hidden states out, in the memory of its own weights."""

from collections.abc import Callable, Sequence

import numpy as np

from converters.checkpoint import Checkpoint
from converters.evidence.attention import OpenLayer
from converters.evidence.mixtures import Experts
from converters.evidence.stages import Floats
from converters.evidence.states import HeldStates, States
from converters.evidence.tower import Bounds, OnInput, Tower, Watch

_UNWATCHED = Watch()


def run_states(
    tower: Tower,
    layer: int,
    states: States,
    bounds: Bounds,
    watch: Watch = _UNWATCHED,
    scratch: Callable[[], States] | None = None,
) -> None:
    """Put what ``layer`` gives in the place of ``states``, which it is given.

    ``bounds`` are the chunks' rows. ``scratch`` gives places for as many rows, which a mixture needs; by default they
    lie in memory. CheckpointError for a weight or an output that is NaN or infinite, EngineError if ONNX Runtime fails.
    """
    mixture = tower.mixture(layer)
    if mixture is None:
        _run_dense(tower, layer, states, bounds, watch)
        return
    total = bounds[-1][1]
    places = scratch or (lambda: HeldStates(np.empty((total, tower.hp.n_embd), np.float32)))
    Experts(tower, layer, mixture).run(states, bounds, watch, places)


def _run_dense(tower: Tower, layer: int, states: States, bounds: Bounds, watch: Watch) -> None:
    opened = OpenLayer(tower, layer)
    for chunk, (start, stop) in enumerate(bounds):
        before = states.read(start, stop)
        after = np.empty_like(before)
        for at, (rows,) in opened.run(before, watch.on_input):
            after[at : at + len(rows)] = rows
        tower.check(after, layer)
        if watch.on_layer:
            watch.on_layer(layer, chunk, before, after)
        states.write(start, after)
        if watch.on_share:
            watch.on_share(stop / bounds[-1][1])


def run_layer(
    checkpoint: Checkpoint, layer: int, states: Sequence[Floats], *, threads: int, on_input: OnInput | None = None
) -> list[Floats]:
    """What one ``layer`` alone makes of ``states``, float32 ``(n, n_embd)`` of each chunk: the same of its output.

    Its weights are in memory meanwhile, of experts one at a time. Errors are those of
    :class:`~converters.evidence.tower.Tower` and :func:`run_states`.
    """
    tower = Tower(checkpoint, threads=threads, longest=max(map(len, states)))
    held = HeldStates(np.concatenate(states))
    bounds = bounds_of(list(map(len, states)))
    run_states(tower, layer, held, bounds, Watch(on_input))
    return [held.rows[start:stop] for start, stop in bounds]


def bounds_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Where chunks of these lengths lie when one follows the other."""
    stops = np.cumsum(lengths).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))
