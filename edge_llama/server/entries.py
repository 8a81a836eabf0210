"""Which models a server has, and under which names they are asked for."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_llama.backends.local_models import LocalModel, meant
from edge_llama.errors import ArtifactError, OptionError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that may be asked for."""

    name: str
    path: Path
    aliases: tuple[str, ...] = ()


def entries(models: Sequence[str | None], aliases: Mapping[str, str | None]) -> list[Entry]:
    """What ``models`` mean: files, folders (of one model, or of many) and names; None is the default model.

    Each has a name of its own; one that is given again has the other name too. ``aliases`` are other names and whose
    they are; None: the first one's. Raises ArtifactError for what is no model, OptionError for an alias of none, or one
    that is a model's name.
    """
    paths: dict[str, Path] = {}
    names: dict[Path, str] = {}
    again: dict[str, str] = {}
    for model in _all(models or [None]):
        if first := names.get(real := model.path.resolve()):
            again[model.name] = first
        else:
            names[real] = name = _unique(model, paths)
            paths[name] = model.path
    targets = {name: first for name, first in again.items() if name not in paths}
    targets |= {alias: next(iter(paths)) if name is None else name for alias, name in aliases.items()}
    for alias, target in targets.items():
        _check_alias(alias, target, paths)
    return [
        Entry(name, path, tuple(alias for alias, target in targets.items() if target == name))
        for name, path in paths.items()
    ]


def _all(models: Iterable[str | None]) -> Iterator[LocalModel]:
    for given in models:
        found = meant(given)
        usable = [model for model in found if not model.problem and model.kind == "model"]
        if not usable:
            raise ArtifactError(f"{given}: {_problem(found[0])}", remedy="give a model")
        for model in found:
            if model not in usable:
                _log.warning("%s is left out: %s", model.path, _problem(model))
        yield from usable


def _problem(model: LocalModel) -> str:
    return model.problem or "a checkpoint: convert it first"


def _unique(model: LocalModel, taken: Mapping[str, Path]) -> str:
    """The model's name; with its folder's, or a number, if another has that."""
    names = [model.name, f"{model.path.parent.name}/{model.name}"]
    names += [f"{model.name}@{number}" for number in range(2, len(taken) + 3)]
    return next(name for name in names if name not in taken)


def _check_alias(alias: str, target: str, paths: Mapping[str, Path]) -> None:
    known = ", ".join(paths)
    if target not in paths:
        raise OptionError(f"alias {alias}: there is no model {target!r}", remedy=f"there are {known}")
    if alias in paths and alias != target:
        raise OptionError(f"alias {alias}: a model has that name", remedy=f"give another; there are {known}")
