"""The experts of a layer, one at a time over the tokens that chose it: in memory are the matrices of one."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from converters.checkpoint import Tensor
from converters.evidence.attention import OpenLayer
from converters.evidence.routing import Chosen, Mixture
from converters.evidence.stages import Floats, Stage, read_all
from converters.evidence.states import States
from converters.evidence.tower import Bounds, OnInput, Tower, Watch
from converters.tensors.split import matrix

_PARTS = ("gate", "up", "down")
_AT_ONCE = 512
_ROWS, _RESULT = "rows", "expert.down"


class Experts:
    """A layer with a mixture, which runs in passes: attention over all chunks, then expert after expert."""

    def __init__(self, tower: Tower, layer: int, mixture: Mixture) -> None:
        self._tower, self._layer, self._mixture = tower, layer, mixture
        self._source = f"model.layers.{layer}."

    def run(self, states: States, bounds: Bounds, watch: Watch, scratch: Callable[[], States]) -> None:
        """As :meth:`Layers.run`."""
        normed, before = scratch(), scratch() if watch.on_layer else None
        parts = 1 + bool(self._mixture.shared) + self._tower.hp.n_expert
        done = iter(range(1, parts + 1))

        def tell() -> None:
            share = next(done) / parts
            if watch.on_share:
                watch.on_share(share)

        chosen = self._attend(states, bounds, watch.on_input, normed, before)
        tell()
        if self._mixture.shared:
            self._add_shared(states, bounds, watch.on_input, normed)
            tell()
        for _ in self._add_experts(states, watch.on_input, normed, chosen):
            tell()
        self._finish(states, bounds, watch, before)

    def _attend(
        self, states: States, bounds: Bounds, on_input: OnInput | None, normed: States, before: States | None
    ) -> Chosen:
        """Attention's part of ``states``, and ``normed``, which experts are given."""
        opened = OpenLayer(self._tower, self._layer)
        logits = []
        for start, stop in bounds:
            rows = states.read(start, stop)
            if before is not None:
                before.write(start, rows)
            for at, (h, x, router) in opened.run(rows, on_input):
                normed.write(start + at, h)
                states.write(start + at, x)
                logits.append(router)
        return self._choose(np.concatenate(logits))

    def _choose(self, logits: Floats) -> Chosen:
        """The best experts of each token; of equals the first."""
        self._tower.check(logits, self._layer)
        used = self._tower.hp.n_expert_used
        best = np.argsort(-logits, axis=1, kind="stable")[:, :used]
        return Chosen(best, self._mixture.scores(np.take_along_axis(logits, best, axis=1)))

    def _add_shared(self, states: States, bounds: Bounds, on_input: OnInput | None, normed: States) -> None:
        name = self._source + self._mixture.shared
        tensors = {part: self._tower.tensors[f"{name}.{part}_proj.weight"] for part in _PARTS}
        expert = _Expert(self._tower, self._layer, tensors)
        names = {part: self._tower.names[f"{name}.{part}_proj.weight"] for part in _PARTS}
        weights = read_all(expert.weights_of(tensors), self._tower.path)
        for start, stop in bounds:
            for at in range(start, stop, _AT_ONCE):
                numbers = np.arange(at, min(at + _AT_ONCE, stop))
                result = expert.run(weights, normed.gather(numbers), names, None, on_input)
                states.add(numbers, result)

    def _add_experts(self, states: States, on_input: OnInput | None, normed: States, chosen: Chosen) -> Iterator[int]:
        name = self._source + self._mixture.experts
        stacks = {part: self._tower.tensors[f"{name}.{part}_proj.weight"] for part in _PARTS}
        names = {part: self._tower.names[f"{name}.{part}_proj.weight"] for part in _PARTS}
        form: _Expert | None = None
        for number in range(self._tower.hp.n_expert):
            tokens, factors = chosen.of(number)
            if len(tokens):
                tensors = {part: matrix(stack, number) for part, stack in stacks.items()}
                form = form or _Expert(self._tower, self._layer, tensors)
                weights = read_all(form.weights_of(tensors), self._tower.path)
                for at in range(0, len(tokens), _AT_ONCE):
                    some, factor = tokens[at : at + _AT_ONCE], factors[at : at + _AT_ONCE]
                    rows = normed.gather(some)
                    rows = rows * factor if self._mixture.weighs_input else rows
                    result = form.run(weights, rows, names, number, on_input)
                    states.add(some, result if self._mixture.weighs_input else result * factor)
            yield number

    def _finish(self, states: States, bounds: Bounds, watch: Watch, before: States | None) -> None:
        """Look at what came of it, and tell of it."""
        for chunk, (start, stop) in enumerate(bounds):
            after = states.read(start, stop)
            self._tower.check(after, self._layer)
            if watch.on_layer and before is not None:
                watch.on_layer(self._layer, chunk, before.read(start, stop), after)


class _Expert:
    """The graph of any expert of a layer: those of ``tensors`` give its form alone."""

    def __init__(self, tower: Tower, layer: int, tensors: Mapping[str, Tensor]) -> None:
        named = {f"expert.{part}_proj.weight": tensor.renamed(part) for part, tensor in tensors.items()}
        writer, graph = tower.writer(named)
        rows = graph.input(_ROWS, ("batch", "sequence", tower.hp.n_embd))
        graph.show(writer.mlp(rows, "expert", "expert", layer))
        self._gated = graph.show(graph.inputs_of["down"])
        self._names = {tensor.name: name for name, tensor in graph.weights.items()}
        self._stage = Stage(graph, tower.threads)

    def weights_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The matrices of an expert by the names of inputs."""
        return {self._names[part]: tensor for part, tensor in tensors.items()}

    def run(
        self,
        weights: Mapping[str, Floats],
        rows: Floats,
        names: Mapping[str, str],
        expert: int | None,
        on_input: OnInput | None,
    ) -> Floats:
        """What an expert of these ``weights`` makes of ``rows``; ``names`` are its tensors' in GGUF."""
        result, *gated = self._stage.run(
            {**weights, _ROWS: rows[None]}, [_RESULT, self._gated] if on_input else [_RESULT]
        )
        if on_input:
            for part in ("gate", "up"):
                on_input(names[part], rows, expert)
            on_input(names["down"], gated[0][0], expert)
        outputs: Floats = result[0]
        return outputs
