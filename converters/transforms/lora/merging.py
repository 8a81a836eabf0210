"""The base's tensors with an adapter merged into them, as peft's ``merge_and_unload`` gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converters.checkpoint import Tensor
from converters.transforms.lora.base import Base, same_numbers
from converters.transforms.lora.checks import token_rows
from converters.transforms.lora.config import Config
from converters.transforms.lora.contents import Contents
from converters.transforms.lora.products import (
    Matrix,
    Pair,
    check_shape,
    dora,
    finite,
    low_rank,
    matrix_reader,
    plus,
    with_rows,
)


@dataclass(frozen=True, slots=True)
class Merger:
    """``base`` and what is merged into it; everything was checked to belong together, shapes excepted."""

    base: Base
    config: Config
    contents: Contents
    matrix: Matrix = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", matrix_reader(self.contents.path))

    @property
    def path(self) -> Path:
        """The adapter's weights."""
        return self.contents.path

    def tensors(self) -> dict[str, Tensor]:
        """What changes, by the base's names: merged, or the adapter's own. CheckpointError for wrong shapes."""
        found = {name: self._whole(name) for name in self.contents.wholes if not self._is_tied_end(name)}
        for module in self.contents.parts:
            name = f"{module}.weight"
            if not self._is_tied_end(name):
                found[name] = self._merged(module, found.get(name) or self.base.tensor(name))
            found |= self._bias(module, found)
        return found | self._tied_ends()

    def _is_tied_end(self, name: str) -> bool:
        return self.base.is_end(name) and self.base.is_tied

    def _whole(self, name: str) -> Tensor:
        """The adapter's own tensor; of embedding and head it may have more rows than the base's, or fewer."""
        tensor, base = self.contents.wholes[name], self.base.tensor(name)
        rows = tensor.shape[:1] if self.base.is_end(name) else base.shape[:1]
        check_shape(self.path, tensor, (*rows, *base.shape[1:]), "the base's has", self.config.another_base)
        return finite(tensor, self.path).renamed(name)

    def _merged(self, module: str, base: Tensor) -> Tensor:
        """``base`` with what was trained of the module."""
        parts = self.contents.parts.get(module, {})
        trained = self.contents.root.of_trained(module)
        if "A" in parts:
            pair = Pair(self.path, parts["A"], parts["B"])
            pair.check(base, self.config.rank(trained), self.config.another_base)
            scale = self.config.scale(trained)
            if "magnitude" in parts:
                length = base.columns if pair.is_embedding else base.rows
                check_shape(self.path, parts["magnitude"], (length,), "the base implies", self.config.another_base)
                base = dora(base, pair, scale, parts["magnitude"], self.matrix)
            else:
                base = low_rank(base, pair, scale, self.matrix)
        return self._with_rows(module, base) if "rows" in parts else base

    def _with_rows(self, module: str, base: Tensor) -> Tensor:
        """``base`` with the tokens that were trained by themselves."""
        rows = token_rows(self.base, self.config, self.contents, module) or []
        values = self.contents.parts[module]["rows"]
        check_shape(self.path, values, (len(rows), base.columns), f"{len(rows)} tokens and the base imply", "")
        if rows and max(rows) >= base.rows:
            problem = f"has {max(rows):,}, {base.name!r} has {base.rows:,} rows"
            raise self.config.fields.fail("trainable_token_indices", problem, self.config.another_base)
        return with_rows(base, rows, values, self.matrix)

    def _bias(self, module: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The module's bias with that of B."""
        added = self.contents.parts[module].get("B.bias")
        if added is None:
            return {}
        name = f"{module}.bias"
        if name not in self.base.names:
            problem = f"is true, and {module!r} of the base has no bias to merge it into"
            raise self.config.fields.fail("lora_bias", problem, "run the adapter unmerged, with peft")
        base = found.get(name) or self.base.tensor(name)
        check_shape(self.path, added, base.shape, "the base's bias has", self.config.another_base)
        return {name: plus(base, added, self.config.scale(self.contents.root.of_trained(module)), self.matrix)}

    def _tied_ends(self) -> dict[str, Tensor]:
        """Embedding and head of a base for which they are one matrix, under both names where they are not any more.

        peft trains copies of modules that are saved as a whole; all else changes the one matrix, whichever end it was
        trained for.
        """
        names = [name for name in (self.base.embedding, self.base.head) if self._is_tied_end(name)]
        modules = {name: name.removesuffix(".weight") for name in names}
        if not any(name in self.contents.wholes or modules[name] in self.contents.parts for name in names):
            return {}
        wholes = {name: self._whole(name) for name in names if name in self.contents.wholes}
        shared = self.base.tensor(self.base.embedding)
        own = self._own(wholes)
        if copies := [tensor for name, tensor in wholes.items() if name not in own]:
            shared = copies[-1]
        for name, module in modules.items():
            if name in own:
                own[name] = self._merged(module, own[name])
            else:
                shared = self._merged(module, shared)
        return {name: own.get(name, shared).renamed(name) for name in names}

    def _own(self, wholes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The ends that are copies of their own."""
        saved = {name for name in (self.base.embedding, self.base.head) if self._is_saved(name)}
        are_two = len(wholes) > 1
        if are_two and not same_numbers(*(self.contents.wholes[name] for name in wholes)):
            return {name: tensor for name, tensor in wholes.items() if name in saved or not saved}
        if saved & wholes.keys() and (are_two or self.config.ties or len(saved) > 1):
            return dict.fromkeys((self.base.embedding, self.base.head), next(iter(wholes.values())))
        return {name: tensor for name, tensor in wholes.items() if name in saved}

    def _is_saved(self, name: str) -> bool:
        return self.config.saves(self.contents.root.of_trained(name.removesuffix(".weight")))
