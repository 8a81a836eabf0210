"""adapter_config.json: what was trained, and by how much its product counts, as peft decides.

Source: peft's ``tuners/lora/config.py``, ``tuners/tuners_utils.py: check_target_module_exists`` and
``utils/other.py`` (0.21). A field that changes the merge and isn't known here is refused by name.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.checkpoint import read_json
from edge_llama.errors import CheckpointError
from edge_llama.files.json_fields import Fields

FILE = "adapter_config.json"
ENDS = ("embed_tokens", "lm_head")
"""The last parts of the names of what begins and ends a model, as peft knows them."""
ANOTHER_BASE = "is it an adapter for another base?"
_FOLDER = "give the folder that peft's save_pretrained wrote"
_UNDERSTOOD = {
    *("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "peft_type", "bias"),
    *("init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "trainable_token_indices", "ensure_weight_tying"),
}
_WITHOUT_EFFECT = {
    # What it is and where it comes from.
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "inference_mode"),
    *("unsloth_fixed", "unsloth_version", "merge_weights", "swift_type"),
    # For training, or for layers that no Llama in transformers has: peft sets fan_in_fan_out to false for linear ones.
    *("lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"),  # LoRA+, by ms-swift
    *("lora_dropout", "megatron_config", "megatron_core", "runtime_config", "fan_in_fan_out", "qalora_group_size"),
    # For initialisations, which are told by init_lora_weights.
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
}
_DEFAULT = 8  # peft's, for ranks and alphas
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Others (pissa, olora, corda, loftq, lora_ga) change the base's weights before training."""


@dataclass(frozen=True, slots=True)
class Config:
    """The content of adapter_config.json, checked. Names of modules are those of the model that was trained."""

    fields: Fields

    @classmethod
    def read(cls, folder: Path) -> "Config":
        """The config in ``folder``; CheckpointError names the field that isn't understood."""
        path = folder / FILE
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder", remedy=_FOLDER)
        if not path.exists():
            raise CheckpointError(f"{folder}: {FILE} is missing", remedy=_elsewhere(folder))
        config = cls(
            Fields(path, read_json(path), "correct it, or save the adapter with peft again", error=CheckpointError)
        )
        config._check()
        return config

    @property
    def content(self) -> Mapping[str, Any]:
        """As it was read."""
        return self.fields.content

    @property
    def another_base(self) -> str:
        """The remedy where adapter and base don't fit; it names the base that the adapter was trained on."""
        base = self.content.get("base_model_name_or_path")
        return f"{ANOTHER_BASE} It was trained on {base!r:.200}" if isinstance(base, str) and base else ANOTHER_BASE

    def _check(self) -> None:
        if self.content.get("peft_type") != "LORA":
            raise self.fields.fail("peft_type", f"is {self.content.get('peft_type')!r:.100}", "supported: LORA")
        if self.content.get("bias", "none") not in ("none", "all", "lora_only"):
            raise self.fields.fail("bias", f"is {self.content['bias']!r:.100}", "expected: none, all or lora_only")
        for key in ("use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"):
            self.fields.flag(key)
        init = self.content.get("init_lora_weights")
        if not any(init is plain or init == plain for plain in _PLAIN_INITS):
            problem = f"is {init!r:.100}, which changes the base's weights"
            remedy = "save it with peft's path_initial_model_for_weight_conversion"
            raise self.fields.fail("init_lora_weights", problem, remedy)
        for key, value in self.content.items():
            if key not in _UNDERSTOOD and key not in _WITHOUT_EFFECT and value:
                raise self.fields.fail(key, f"is {value!r:.80}: not supported", "merge the adapter with peft itself")
        self._check_types()

    def _check_types(self) -> None:
        """What is matched later has a type that can be: each error names its field before a tensor is looked at."""
        for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
            self.names(key)
        for key in ("rank_pattern", "alpha_pattern"):
            self._pattern(key)
        layers = self.content.get("layers_to_transform")
        if not (layers is None or _is_whole(layers) or (isinstance(layers, list) and all(map(_is_whole, layers)))):
            raise self.fields.fail("layers_to_transform", f"is {layers!r:.100}, expected numbers of layers")
        self.token_rows("")

    @property
    def has_targets(self) -> bool:
        """Whether it says what was trained; where not, the tensors do."""
        return self.content.get("target_modules") is not None

    @property
    def ties(self) -> bool:
        """Whether embedding and head of a tied base were trained as one."""
        return self.fields.flag("ensure_weight_tying")

    @property
    def has_biases(self) -> bool:
        """Whether the base's biases were trained too."""
        return bool(self.content.get("bias", "none") != "none")

    def rank(self, module: str) -> int:
        """The inner size of a module's two matrices."""
        value = self._by_pattern("r", "rank_pattern", module)
        if not _is_whole(value) or value <= 0:
            raise self.fields.fail("r", f"is {value!r:.100} for {module!r}, expected a positive integer")
        return int(value)

    @property
    def alpha(self) -> float:
        """That of modules for which no pattern gives another."""
        return self._alpha(self.content.get("lora_alpha", _DEFAULT), "all modules")

    def _alpha(self, alpha: Any, whose: str) -> float:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not -1e30 < alpha < 1e30:
            raise self.fields.fail("lora_alpha", f"is {alpha!r:.100} for {whose}, expected a number")
        return alpha

    def scale(self, module: str) -> float:
        """What the product is multiplied by: alpha / r, or alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)."""
        alpha = self._alpha(self._by_pattern("lora_alpha", "alpha_pattern", module), repr(module))
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.content.get("use_rslora") else rank)

    def _by_pattern(self, key: str, pattern_key: str, module: str) -> Any:
        """The value of the first pattern that the end of a module's name matches, from one of its dots on."""
        for pattern, value in self._pattern(pattern_key).items():
            if self._matches(pattern_key, rf"(.*\.)?({pattern})", module):
                return value
        return self.content.get(key, _DEFAULT)

    def _pattern(self, key: str) -> Mapping[str, Any]:
        patterns = self.content.get(key) or {}
        if not isinstance(patterns, dict):
            raise self.fields.fail(key, f"is {patterns!r:.100}, expected an object")
        return patterns

    def _matches(self, key: str, pattern: str, module: str) -> bool:
        try:
            return re.fullmatch(pattern, module) is not None
        except (re.error, RecursionError, OverflowError) as error:
            raise self.fields.fail(key, f"is no regular expression: {pattern!r:.100}: {error}") from error

    def names(self, key: str) -> str | list[str]:
        """A list of names, or one regular expression."""
        value = self.content.get(key) or []
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            return value
        raise self.fields.fail(key, f"is {value!r:.100}, expected names or a regular expression")

    def covers(self, key: str, module: str) -> bool:
        """Whether ``module`` is named by a list (by its end) or by a regular expression."""
        names = self.names(key)
        if isinstance(names, str):
            return self._matches(key, names, module)
        return any(_ends_with(module, name) for name in names)

    def targets(self, module: str, *, is_linear: bool) -> bool:
        """Whether the config names ``module`` for two matrices; ``is_linear``: neither embedding nor head."""
        if self.covers("exclude_modules", module) or self._is_within_saved(module):
            return False
        names = self.names("target_modules")
        if isinstance(names, str):
            return is_linear if names.lower() == "all-linear" else self._matches("target_modules", names, module)
        if module in names:
            return True
        return any(_ends_with(module, name) for name in names) and self._is_in_layers(module)

    def _is_in_layers(self, module: str) -> bool:
        """Whether ``layers_to_transform`` counts a module's layer: the first number in its name."""
        layers = self.content.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = self.names("layers_pattern")
        patterns = [patterns] if isinstance(patterns, str) else patterns
        starts = [rf"(?:^|.*?\.){pattern}" for pattern in patterns] or [r".*?\.[^.]*"]
        found = None
        for start in starts:
            try:
                found = found or re.match(rf"{start}\.(?P<layer>\d+)\.", module)
            except (re.error, RecursionError, OverflowError) as error:
                raise self.fields.fail("layers_pattern", f"is no regular expression: {patterns!r:.100}") from error
        wanted = layers if isinstance(layers, list) else [layers]
        return found is not None and found["layer"] in map(str, wanted)

    def saves(self, module: str) -> bool:
        """Whether ``module`` was trained as a whole, or inside such a one; peft compares only the ends of names."""
        return any(parent.endswith(name) for parent in _parents(module) for name in self.saved_names)

    @property
    def saved_names(self) -> Sequence[str]:
        """What ``modules_to_save`` names."""
        names = self.names("modules_to_save")
        return [names] if isinstance(names, str) else names

    def _is_within_saved(self, module: str) -> bool:
        """For targets peft compares whole parts of names, and the last name counts as a regular expression."""
        return any(
            self._matches("modules_to_save", rf"(|.*\.){name}(|\..*)", module) for name in self.saved_names
        ) or self.saves(module)

    def token_rows(self, module: str, *, is_embedding: bool = False) -> Sequence[int] | None:
        """The rows of ``module`` that were trained by themselves (``trainable_token_indices``), None if none were."""
        given = self.content.get("trainable_token_indices")
        by_name = given if isinstance(given, dict) else {ENDS[0]: given} if given is not None else {}
        for rows in by_name.values():
            if not isinstance(rows, list) or not all(_is_whole(row) and row >= 0 for row in rows):
                raise self.fields.fail("trainable_token_indices", f"is {given!r:.100}, expected token ids")
        if not isinstance(given, dict):
            return given if is_embedding else None
        return next((rows for name, rows in by_name.items() if name and module.endswith(name)), None)


def _elsewhere(folder: Path) -> str:
    """What to do where a folder is no adapter."""
    if (folder / "config.json").is_file():
        return "this is a whole checkpoint, not an adapter: convert it by itself"
    within = sorted(path.parent.name for path in folder.glob(f"*/{FILE}"))
    if within:
        return f"give one of the folders in it: {', '.join(within[:5])}"
    return _FOLDER


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _parents(module: str) -> Iterable[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    parts = module.split(".")
    return (".".join(parts[: at + 1]) for at in range(len(parts)))
