"""An adapter's tensors by what they are for, under the base's names.

peft saves ``base_model.model.MODULE.lora_A.weight``; a model's raw state dict has the adapter's name in between
(``lora_A.default.weight``), what a trainer wrapped around modules, and the base's own tensors too. All of it is read.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.checkpoint import Tensor
from converters.sources.safetensors import read_file
from edge_llama.errors import CheckpointError

FILE = "adapter_model.safetensors"
PARTS = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
    "token_adapter.trainable_tokens_delta": "rows",
}
"""What a module of the adapter is made of, by peft's names; a bias of B is the part ``B.bias``."""
_PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
_PART = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|"
    r"token_adapter\.trainable_tokens_delta)(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.(?P<what>weight|bias))?"
)
_SAVED = re.compile(r"(?P<module>(?:.+\.)?)modules_to_save\.(?:(?P<adapter>[^.]+)\.)?(?P<rest>(?:[^.]+\.)*[^.]+)")
_UNUSED = re.compile(r"(?:^|\.)(?:original_module|token_adapter\.trainable_tokens_original)\.|\.rotary_emb\.inv_freq$")
"""What the base was before, and what every runtime computes."""
_WITHIN = re.compile(r"\.(?:base_layer|token_adapter)(?=\.)")
_ROOTS = (
    ("", ""),
    ("", "model."),
    ("", "language_model."),
    ("", "language_model.model."),
    ("model.", ""),
    ("language_model.", ""),
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "model."),
    ("language_model.model.", "model.language_model."),
)
"""How the trained model's names may begin, and the base's: it was trained inside another class."""


@dataclass(frozen=True, slots=True)
class Root:
    """Names of the trained model begin with ``trained`` where the base's begin with ``base``."""

    trained: str
    base: str

    def of_base(self, name: str) -> str:
        """The base's name."""
        return self.base + name.removeprefix(self.trained) if name.startswith(self.trained) else name

    def of_trained(self, name: str) -> str:
        """The trained model's name."""
        return self.trained + name.removeprefix(self.base) if name.startswith(self.base) else name


@dataclass(frozen=True, slots=True)
class Contents:
    """``parts`` of modules, by module and part; ``wholes`` stand in place of the base's tensors, by their names."""

    path: Path
    parts: Mapping[str, Mapping[str, Tensor]]
    wholes: Mapping[str, Tensor]
    root: Root


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor belongs: a part of a module, or (part empty) a tensor of the base as a whole.

    ``is_copy``: where the base's own name is there too, that counts, as it does in peft.
    """

    name: str
    part: str
    adapter: str
    is_copy: bool = False


def read(folder: Path, known: Collection[str]) -> Contents:
    """What the adapter in ``folder`` holds; ``known`` are the names of the base's tensors. No weight is read.

    CheckpointError names the tensor that isn't understood, or that is there twice.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: {FILE} is missing", remedy=_other_weights(folder))
    tensors = read_file(path)
    used = {name: place for name in tensors if (place := _place(path, name)) is not None}
    _check_one_adapter(path, used.values())
    root = _root(used.values(), known)
    parts: dict[str, dict[str, Tensor]] = {}
    wholes: dict[str, Tensor] = {}
    for name, place in sorted(used.items(), key=lambda item: item[1].is_copy):
        target = _resolved(place, root, known)
        where = parts.setdefault(target, {}) if place.part else wholes
        key = place.part or target
        if place.is_copy and key in where:
            continue
        if key in where:
            raise CheckpointError(
                f"{path}: tensors {where[key].name!r} and {name!r} are for the same thing",
                remedy="save the adapter with peft's save_pretrained",
            )
        where[key] = tensors[name]
    return Contents(path, parts, wholes, root)


def _place(path: Path, name: str) -> _Place | None:
    """None for what is not used; CheckpointError for a kind of LoRA that isn't known."""
    bare = _WRAPPERS.sub("", name).removeprefix("module.").removeprefix(_PREFIX)
    if _UNUSED.search(bare):
        return None
    if match := _PART.fullmatch(bare):
        kind, what = match["kind"], match["what"] or "weight"
        if what == "bias" and kind != "lora_B":
            raise _not_understood(path, name)
        return _Place(match["module"], "B.bias" if what == "bias" else PARTS[kind], match["adapter"] or "")
    if match := _SAVED.fullmatch(bare):
        return _Place(match["module"] + match["rest"], "", match["adapter"] or "", is_copy=True)
    if "lora_" in bare:
        raise _not_understood(path, name)
    return _Place(_WITHIN.sub("", bare), "", "")


def _not_understood(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: tensor {name!r:.200} is not understood", remedy="merge the adapter with peft itself"
    )


def _check_one_adapter(path: Path, places: Iterable[_Place]) -> None:
    adapters = sorted({place.adapter for place in places if place.adapter})
    if len(adapters) > 1:
        raise CheckpointError(
            f"{path}: holds several adapters: {', '.join(adapters)}", remedy="save the one that you want"
        )


def _root(places: Iterable[_Place], known: Collection[str]) -> Root:
    """The beginning of names with which most of them are the base's."""
    names = [place.name + (".weight" if place.part else "") for place in places]
    roots = [Root(*pair) for pair in _ROOTS]
    return max(roots, key=lambda root: sum(root.of_base(name) in known for name in names))


def _resolved(place: _Place, root: Root, known: Collection[str]) -> str:
    """The base's name of a place; heads stand outside what their names begin with, so other beginnings count too."""
    end = ".weight" if place.part else ""
    for candidate in (root, *(Root(*pair) for pair in _ROOTS)):
        name = candidate.of_base(place.name)
        if name + end in known:
            return name
    return root.of_base(place.name)


def _other_weights(folder: Path) -> str:
    """What to do where the weights are missing."""
    if (folder / "adapter_model.bin").is_file():
        return "adapter_model.bin is a pickle, which isn't read: load the adapter with peft and save it again"
    if (folder / "adapters.safetensors").is_file():
        return "adapters.safetensors is MLX's: save the adapter with peft"
    return "give the folder that peft's save_pretrained wrote"
