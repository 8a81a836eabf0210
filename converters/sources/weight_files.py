"""Which of a folder's files hold its weights: transformers' choice where there are two sets, and what is left over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.checkpoint import Tensor, read_json
from converters.facts import WEIGHTS, decide
from converters.sources.safetensors import read_file
from edge_llama.errors import CheckpointError

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DOWNLOAD_INDEX = "download the index and all its files again"
_MOST_TOLD = 4
_NO_MODEL = ("adapter_model", "consolidated")
"""Beginnings of names: an adapter's weights, and Mistral's copy of the weights under names of its own."""


def read_weights(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[Path], dict[str, str]]:
    """The tensors by name, the files that they are read from, and the report's note on other weights in the folder.

    CheckpointError if there is no set of weights, or it isn't whole.
    """
    name = _chosen(folder, config)
    if name.endswith(".index.json"):
        tensors, files = _sharded(folder, name)
        files_and_index = [folder / name, *files]
    else:
        tensors, files = read_file(folder / name), [folder / name]
        files_and_index = files
    left = sorted({*folder.glob("*.safetensors"), *folder.glob(INDEX)} - {*files_and_index})
    return tensors, files_and_index, _note(name, [path.name for path in left])


def _chosen(folder: Path, config: Mapping[str, Any]) -> str:
    """The name of the file of weights, or of the index of several."""
    by_config, single, index, other = WEIGHTS.places
    said = {
        by_config: _named(folder, config.get("transformers_weights")),
        single: _SINGLE if (folder / _SINGLE).is_file() else None,
        index: INDEX if (folder / INDEX).is_file() else None,
    }
    found = decide(WEIGHTS, said) or decide(WEIGHTS, {other: _only_file(folder)})
    if found is None:
        raise CheckpointError(f"{folder}: no *.safetensors file", remedy="download the weights too")
    return str(found.value)


def _named(folder: Path, name: Any) -> str | None:
    if name is None:
        return None
    endings = (".safetensors", ".safetensors.index.json")
    if type(name) is not str or Path(name).name != name or not name.endswith(endings):
        raise CheckpointError(
            f"{folder}: config.json: transformers_weights is {name!r:.100}, expected a safetensors file or an index",
            remedy="correct it, or remove it",
        )
    if not (folder / name).is_file():
        raise CheckpointError(
            f"{folder}: {name} is missing, which config.json names (transformers_weights)", remedy="download it too"
        )
    return name


def _only_file(folder: Path) -> str:
    """The one file of weights under another name than transformers'."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    models = [name for name in names if not name.startswith(_NO_MODEL)]
    if len(models) == 1:
        return models[0]
    if models:
        raise CheckpointError(
            f"{folder}: {len(models)} safetensors files but no {INDEX}", remedy="download the index too"
        )
    if names:
        kind, remedy = "an adapter's weights", "convert its base, and give this folder as --lora"
        if not names[0].startswith(_NO_MODEL[0]):
            kind, remedy = "weights under Mistral's own names", f"download {_SINGLE}, or {INDEX} and its files"
        raise CheckpointError(f"{folder}: {names[0]} holds {kind}, and there are no others", remedy=remedy)
    has_others = any(folder.glob("*.bin"))
    raise CheckpointError(
        f"{folder}: no *.safetensors file",
        remedy="convert .bin or .pth weights to safetensors first" if has_others else "download the weights too",
    )


def _note(name: str, left: list[str]) -> dict[str, str]:
    if not left:
        return {}
    more = f" and {len(left) - _MOST_TOLD} more" if len(left) > _MOST_TOLD else ""
    return {WEIGHTS.topic: f"by {name}; not used: {', '.join(left[:_MOST_TOLD])}{more}"}


def _sharded(folder: Path, name: str) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of all shards that the index names, each in the shard where the index says, and these files."""
    index = folder / name
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty", remedy=_DOWNLOAD_INDEX)
    tensors: dict[str, Tensor] = {}
    shards = sorted({str(name) for name in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or not shard.isprintable():
            raise CheckpointError(
                f"{index}: weight_map names {shard!r}, which is no file of this folder", remedy=_DOWNLOAD_INDEX
            )
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder}: shard {shard} is missing", remedy="download it too")
        found = read_file(folder / shard)
        for tensor in (tensor for tensor, file in weight_map.items() if file == shard):
            if tensor not in found:
                raise CheckpointError(
                    f"{folder / shard}: tensor {tensor!r} is missing, though {name} places it here",
                    remedy=_DOWNLOAD_INDEX,
                )
        if extra := sorted(found.keys() - weight_map.keys()):
            raise CheckpointError(f"{folder / shard}: tensor {extra[0]!r} is not in {name}", remedy=_DOWNLOAD_INDEX)
        tensors |= found
    return tensors, [folder / shard for shard in shards]
