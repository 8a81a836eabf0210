"""A LoRA adapter as peft saves it, merged into a checkpoint's tensors while they stream.

A merged tensor is read as ``base + scale * (B @ A)`` in float32 and handed on as float32, whatever the base's format:
rounding happens once, in the output's format. An f32 merge equals peft's ``merge_and_unload`` to its last bits
(1e-6). peft merges a bf16 base in bf16 and rounds the product as well as the sum: there the two agree within one
bf16 step of the largest number involved. Rows are merged in Hugging Face's order, before an architecture changes it.

Linear layers, embeddings and whole modules (``modules_to_save``) are merged; whatever else an adapter holds is refused.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.checkpoint import Checkpoint, Tensor, read_json
from converters.sources.safetensors import read_file
from edge_llama.errors import CheckpointError
from edge_llama.files.formats import F32
from edge_llama.files.json_fields import Fields
from quant.kernels import NonFiniteError, recode

_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_UNDERSTOOD = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "peft_type", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
}
_WITHOUT_EFFECT = {
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "inference_mode"),
    *("lora_dropout", "megatron_core", "eva_config", "qalora_group_size"),
}
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Others (pissa, olora, corda, loftq, ...) change the base's weights before training."""
_ENDS = ("model.embed_tokens", "lm_head")
_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "base_layer.weight": "whole",
    "weight": "whole",
}


def merge(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """``checkpoint`` with the adapter in ``folder`` merged into its tensors; nothing but headers is read yet.

    Raises CheckpointError, naming field or tensor, for what isn't understood, is missing, left over or doesn't fit.
    """
    fields = Fields(folder / _CONFIG, read_json(folder / _CONFIG), "", error=CheckpointError)
    config = _Config(folder, fields)
    config.check()
    modules = _modules(folder)
    _check_modules(checkpoint, config, modules)
    matrix = _matrix_reader(folder / _WEIGHTS)
    merged = {}
    quantized = 0
    for module, parts in modules.items():
        name = f"{module}.weight"
        base = _whole(checkpoint, folder, name, parts.get("whole"))
        if "A" in parts:
            pair = _Pair(folder, parts["A"], parts["B"])
            pair.check(base, config.rank(module))
            base = _merged(base, pair, config.scale(module), matrix)
        merged[name] = base
        quantized += checkpoint.tensors[name].format.is_quantized
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **merged},
        files=(*checkpoint.files, folder / _CONFIG, folder / _WEIGHTS),
        warnings=checkpoint.warnings + _warnings(quantized),
    )


def _warnings(quantized: int) -> tuple[str, ...]:
    """An adapter was trained on one set of weights; a quantized base is another."""
    if not quantized:
        return ()
    return (f"the adapter is merged into {quantized} quantized tensors; the full-precision base would be more exact",)


@dataclass(frozen=True, slots=True)
class _Config:
    """adapter_config.json."""

    folder: Path
    fields: Fields

    @property
    def content(self) -> Mapping[str, Any]:
        return self.fields.content

    def check(self) -> None:
        """Only plain LoRA: a field that could change the merge and isn't known here must be empty."""
        if self.content.get("peft_type") != "LORA":
            raise self.fields.fail("peft_type", f"is {self.content.get('peft_type')!r}", "supported: LORA")
        if self.content.get("bias", "none") != "none":
            raise self.fields.fail(
                "bias", f"is {self.content['bias']!r}: trained biases can't be merged", "supported: none"
            )
        if self.content.get("use_rslora") not in (None, True, False):
            raise self.fields.fail("use_rslora", f"is {self.content['use_rslora']!r}, expected true or false")
        if self.content.get("init_lora_weights") not in _PLAIN_INITS:
            raise self.fields.fail(
                "init_lora_weights",
                f"is {self.content['init_lora_weights']!r}, which changes the base's weights",
                "save it with peft's path_initial_model_for_weight_conversion",
            )
        for key, value in self.content.items():
            if key not in _UNDERSTOOD and key not in _WITHOUT_EFFECT and value:
                raise self.fields.fail(
                    key, f"is {str(value)[:80]!r}: not supported", "merge the adapter with peft itself"
                )

    def number(self, key: str, value: Any, kind: type = int) -> float:
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise self.fields.fail(key, f"is {value!r}, expected a positive {'integer' if kind is int else 'number'}")
        return float(value)

    def rank(self, module: str) -> int:
        return int(self._by_pattern("r", "rank_pattern", module, int))

    def scale(self, module: str) -> float:
        """What the product is multiplied by: alpha / r, or alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)."""
        alpha, rank = self._by_pattern("lora_alpha", "alpha_pattern", module, float), self.rank(module)
        return alpha / (math.sqrt(rank) if self.content.get("use_rslora") else rank)

    def _by_pattern(self, key: str, pattern_key: str, module: str, kind: type) -> float:
        patterns = self.content.get(pattern_key) or {}
        if not isinstance(patterns, dict):
            raise self.fields.fail(pattern_key, f"is {patterns!r}, expected an object")
        for pattern, value in patterns.items():
            if self._matches(pattern_key, rf"(.*\.)?({pattern})", module):
                return self.number(pattern_key, value, kind)
        return self.number(key, self.content.get(key), kind)

    def _matches(self, key: str, pattern: str, module: str) -> bool:
        try:
            return re.fullmatch(pattern, module) is not None
        except re.error as error:
            raise self.fields.fail(key, f"is no regular expression: {pattern!r}: {error}") from error

    def names(self, key: str) -> str | list[str]:
        """A list of names, or one regular expression."""
        value = self.content.get(key) or []
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            return value
        raise self.fields.fail(key, f"is {value!r}, expected names or a regular expression")

    def covers(self, key: str, module: str) -> bool:
        """Whether ``module`` is named by a list (by its end) or by a regular expression, as peft decides."""
        names = self.names(key)
        if isinstance(names, str):
            if names == "all-linear":
                return module.endswith("_proj")
            return self._matches(key, names, module)
        return any(module == name or module.endswith(f".{name}") for name in names)

    def targets(self, module: str) -> bool:
        """Whether an adapter of this config has matrices for ``module``."""
        if not self.covers("target_modules", module) or self.saves(module) or self.covers("exclude_modules", module):
            return False
        layers = self.content.get("layers_to_transform")
        if layers in (None, []) or isinstance(self.content["target_modules"], str):
            return True
        pattern = self.names("layers_pattern") or [r"[^.]*"]
        choices = "|".join([pattern] if isinstance(pattern, str) else pattern)
        found = re.match(rf"(?:.*?\.)?(?:{choices})\.(\d+)\.", module)
        return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])

    def saves(self, module: str) -> bool:
        """Whether ``module`` was trained as a whole, or inside such a one; peft compares only the ends of names."""
        names = self.names("modules_to_save")
        names = [names] if isinstance(names, str) else names
        return any(parent.endswith(name) for parent in _parents(module) for name in names)


def _parents(module: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    parts = module.split(".")
    return [".".join(parts[: at + 1]) for at in range(len(parts))]


def _modules(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The adapter's tensors by module of the base and part: ``A``, ``B`` or ``whole``."""
    path = folder / _WEIGHTS
    if not path.is_file():
        others = any(folder.glob("adapter_model.bin"))
        raise CheckpointError(
            f"{folder}: {_WEIGHTS} is missing", remedy="save the adapter as safetensors" if others else ""
        )
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_file(path).items():
        end = next((end for end in _PARTS if name.endswith(f".{end}")), None)
        if end is None or not name.startswith(_PREFIX):
            raise CheckpointError(f"{path}: tensor {name!r} is not understood", remedy="supported: lora_A and lora_B")
        modules.setdefault(name[len(_PREFIX) : -len(end) - 1], {})[_PARTS[end]] = tensor
    return modules


def _check_modules(checkpoint: Checkpoint, config: _Config, modules: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Every module that the config names has its tensors, and no other has."""
    path, remedy = config.folder / _WEIGHTS, "is it an adapter for another base?"
    known = {name.removesuffix(".weight") for name in checkpoint.tensors if name.endswith(".weight")}
    matrices = {module for module in known if len(checkpoint.tensors[f"{module}.weight"].shape) == 2}
    _check_names(config, known, checkpoint.path)
    wanted = {module: {"A", "B"} for module in matrices if config.targets(module)}
    wanted |= {module: {"whole"} for module in known if config.saves(module)}
    for module, parts in modules.items():
        if module not in known:
            raise CheckpointError(f"{path}: tensors of {module!r}, which {checkpoint.path} has not", remedy=remedy)
        # peft also saves embeddings that it did not train, and loads them again.
        if extra := parts.keys() - wanted.get(module, set()) - ({"whole"} if module in _ENDS else set()):
            raise CheckpointError(f"{path}: {parts[min(extra)].name!r} is left over: {_CONFIG} names no such target")
        if module in _ENDS and checkpoint.config.get("tie_word_embeddings"):
            raise CheckpointError(
                f"{path}: tensors of {module!r}: this model's embedding is its head too, and one can't change alone",
                remedy="merge the adapter with peft itself",
            )
    for module, needed in sorted(wanted.items()):
        if missing := needed - modules.get(module, {}).keys():
            what = {"A": "lora_A", "B": "lora_B"}.get(min(missing), "weight")
            raise CheckpointError(f"{path}: {what} of {module!r} is missing, a target of {_CONFIG}", remedy=remedy)


def _check_names(config: _Config, known: set[str], base: Path) -> None:
    """A name that fits nothing would be trained weights that get lost."""
    for key in ("target_modules", "modules_to_save"):
        names = config.names(key)
        for name in [] if isinstance(names, str) else names:
            alone = replace(config, fields=replace(config.fields, content={key: [name]}))
            if not any(alone.covers(key, module) or alone.saves(module) for module in known):
                raise config.fields.fail(
                    key, f"names {name!r}, which {base} has not", "is it an adapter for another base?"
                )


def _whole(checkpoint: Checkpoint, folder: Path, name: str, tensor: Tensor | None) -> Tensor:
    """The base's tensor, or the adapter's own copy of it."""
    base = checkpoint.tensors[name]
    if tensor is None:
        return base
    if tensor.shape != base.shape:
        raise CheckpointError(
            f"{folder / _WEIGHTS}: {name!r} has shape {list(tensor.shape)}, the base's has {list(base.shape)}",
            remedy="was the vocabulary resized, or is it an adapter for another base?",
        )
    return tensor.renamed(name)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two matrices of a module: A ``(r, inputs)``, B ``(outputs, r)``; of an embedding both are transposed."""

    folder: Path
    a: Tensor
    b: Tensor

    @property
    def is_embedding(self) -> bool:
        return self.a.name.endswith("lora_embedding_A")

    def check(self, base: Tensor, rank: int) -> None:
        outputs, inputs = reversed(base.shape) if self.is_embedding else base.shape
        for tensor, shape in ((self.a, (rank, inputs)), (self.b, (outputs, rank))):
            if tensor.shape != shape:
                raise CheckpointError(
                    f"{self.folder / _WEIGHTS}: {tensor.name!r} has shape {list(tensor.shape)}, "
                    f"rank {rank} and the base imply {list(shape)}",
                    remedy="is it an adapter for another base?",
                )

    def factors(
        self, matrix: Callable[[Tensor], NDArray[np.float64]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Left ``(rows, r)`` and right ``(r, columns)``, whose product has the base's shape."""
        a, b = matrix(self.a), matrix(self.b)
        return (a.T, b.T) if self.is_embedding else (b, a)


def _merged(base: Tensor, pair: _Pair, scale: float, matrix: Callable[[Tensor], NDArray[np.float64]]) -> Tensor:
    """Rows of ``base + scale * left @ right``, float32.

    The product is summed in float64: then the bytes don't depend on how a BLAS library splits the work.
    """

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        left, right = pair.factors(matrix)
        rows = recode(base.read(start, stop), base.format, F32).view(np.float32)
        delta = (left[start:stop] @ right * scale).astype(np.float32)
        return (rows + delta).view(np.uint8)

    return replace(base, format=F32, read=read)


def _matrix_reader(path: Path) -> Callable[[Tensor], NDArray[np.float64]]:
    """Reads a small matrix whole. A tensor's chunks follow each other, so a few matrices in memory are enough."""

    @lru_cache(maxsize=8)
    def matrix(tensor: Tensor) -> NDArray[np.float64]:
        try:
            raw = recode(tensor.read(0, tensor.rows), tensor.format, F32)
        except NonFiniteError as error:
            raise CheckpointError(f"{path}: {tensor.name!r}: {error}", remedy="the training went wrong") from error
        return raw.view(np.float32).astype(np.float64)

    return matrix
