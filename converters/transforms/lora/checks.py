"""Whether config, tensors and base of an adapter tell the same: what would get lost in silence is an error."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from converters.transforms.lora.base import Base
from converters.transforms.lora.config import FILE as CONFIG
from converters.transforms.lora.config import Config
from converters.transforms.lora.contents import Contents
from edge_llama.errors import CheckpointError

_LAYER = re.compile(r".*?\.\d+(?=\.)")
_CALLED = {
    "A": "lora_A",
    "B": "lora_B",
    "B.bias": "the bias of lora_B",
    "magnitude": "lora_magnitude_vector",
    "rows": "trainable_tokens_delta",
}


def check(base: Base, config: Config, contents: Contents) -> None:
    """Every module that the config names has its tensors, and no other has; CheckpointError names the first."""
    _check_names(base, config, contents)
    _check_known(base, config, contents)
    wanted = _wanted(base, config, contents)
    for module, parts in contents.parts.items():
        if extra := sorted(parts.keys() - wanted.get(module, set())):
            tensor = parts[extra[0]]
            raise CheckpointError(
                f"{contents.path}: {tensor.name!r} is left over: {CONFIG} names no such target",
                remedy="give the config that was saved with these weights",
            )
    for module, needed in sorted(wanted.items()):
        optional = {"rows"} if follows_embedding(base, config, contents, module) else set()
        if missing := sorted(needed - contents.parts.get(module, {}).keys() - optional):
            what = _CALLED[missing[0]]
            raise CheckpointError(
                f"{contents.path}: {what} of {module!r} is missing, a target of {CONFIG}{_layers(base, contents)}",
                remedy=config.another_base,
            )
    _check_saved(base, config, contents)


def _check_names(base: Base, config: Config, contents: Contents) -> None:
    """A name that fits nothing would be trained weights that get lost."""
    modules = {contents.root.of_trained(module) for module in base.modules}
    for key in ("target_modules", "modules_to_save"):
        names = config.names(key)
        for name in [] if isinstance(names, str) else names:
            alone = replace(config, fields=replace(config.fields, content={key: [name]}))
            if not any(alone.covers(key, module) or alone.saves(module) for module in modules):
                raise config.fields.fail(
                    key, f"names {name!r:.100}, which {base.checkpoint.path} has not", config.another_base
                )


def _check_known(base: Base, config: Config, contents: Contents) -> None:
    for module in contents.parts:
        if module not in base.modules:
            raise CheckpointError(
                f"{contents.path}: tensors of {module!r:.200}, which {base.checkpoint.path} has not"
                f"{_layers(base, contents)}",
                remedy=config.another_base,
            )
    for name, tensor in contents.wholes.items():
        if name not in base.names:
            raise CheckpointError(
                f"{contents.path}: tensor {tensor.name!r:.200}: {base.checkpoint.path} has no {name!r:.200}",
                remedy=config.another_base,
            )


def _layers(base: Base, contents: Contents) -> str:
    """Where adapter and base have layers of other numbers."""
    counts = [
        len({found[0] for name in names if (found := _LAYER.search(name))}) for names in (contents.parts, base.modules)
    ]
    return "" if counts[0] == counts[1] else f" (the adapter has {counts[0]} layers, the base {counts[1]})"


def _wanted(base: Base, config: Config, contents: Contents) -> dict[str, set[str]]:
    """The parts that each module must have, by the config."""
    wanted: dict[str, set[str]] = {}
    for module in base.modules:
        trained, tensor = contents.root.of_trained(module), f"{module}.weight"
        parts = set()
        held = contents.parts.get(module, {}).keys() - {"rows"}
        if not config.has_targets:
            parts |= {"A", "B", *held} if held else set()
        elif base.is_matrix(module) and config.targets(trained, is_linear=not base.is_end(tensor)):
            parts |= _of_target(config, is_embedding=tensor == base.embedding)
        if token_rows(base, config, contents, module) is not None:
            parts.add("rows")
        if {"A", "rows"} <= parts:
            problem = f"names {trained!r}, which is a target too: peft trains one or the other"
            raise config.fields.fail("trainable_token_indices", problem, config.another_base)
        if parts:
            wanted[module] = parts
    return _tied(base, config, wanted)


def _of_target(config: Config, *, is_embedding: bool) -> set[str]:
    parts = {"A", "B"}
    if config.fields.flag("use_dora"):
        parts.add("magnitude")
    if config.fields.flag("lora_bias") and not is_embedding:
        parts.add("B.bias")
    return parts


def token_rows(base: Base, config: Config, contents: Contents, module: str) -> Sequence[int] | None:
    """Which rows of ``module`` were trained by themselves, None if none were. A tied head follows the embedding."""
    tensor, trained = f"{module}.weight", contents.root.of_trained(module)
    rows = config.token_rows(trained, is_embedding=tensor == base.embedding)
    if rows is None and tensor == base.head and "rows" in contents.parts.get(module, {}) and base.is_tied:
        return _embedding_rows(base, config, contents)
    return rows


def _embedding_rows(base: Base, config: Config, contents: Contents) -> Sequence[int] | None:
    embedding = base.embedding.removesuffix(".weight")
    return config.token_rows(contents.root.of_trained(embedding), is_embedding=True)


def follows_embedding(base: Base, config: Config, contents: Contents, module: str) -> bool:
    """Whether ``module`` is a tied head whose trained rows are the embedding's; peft mostly leaves them out."""
    rows = token_rows(base, config, contents, module)
    is_tied_head = rows is not None and f"{module}.weight" == base.head and base.is_tied
    return is_tied_head and rows == _embedding_rows(base, config, contents)


def _tied(base: Base, config: Config, wanted: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """With ``ensure_weight_tying`` peft trains and saves both ends of a tied base where one is a target."""
    found = dict(wanted)
    ends = [name.removesuffix(".weight") for name in (base.embedding, base.head)]
    targets = set().union(*(found.get(end, set()) for end in ends))
    if config.ties and "A" in targets and base.is_tied:
        found |= dict.fromkeys(ends, targets)
    return found


def _check_saved(base: Base, config: Config, contents: Contents) -> None:
    """What was trained as a whole is there; of tied ends that were trained as one, one is enough."""
    for name in sorted(base.names):
        if name in contents.wholes or not config.saves(contents.root.of_trained(name.rpartition(".")[0])):
            continue
        if base.is_end(name) and any(map(base.is_end, contents.wholes)) and _are_one(base, config, contents):
            continue
        module, _, kind = name.rpartition(".")
        raise CheckpointError(
            f"{contents.path}: {kind} of {module!r} is missing, which {CONFIG} says was trained as a whole",
            remedy=config.another_base,
        )


def _are_one(base: Base, config: Config, contents: Contents) -> bool:
    """Whether embedding and head were saved as one matrix."""
    ends = (contents.root.of_trained(name.removesuffix(".weight")) for name in (base.embedding, base.head))
    return base.is_tied and (config.ties or all(map(config.saves, ends)))
