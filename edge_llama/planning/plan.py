"""How a model will be opened: engine, context, settings, device. Decided before a weight is read."""

from dataclasses import dataclass
from typing import Any

from edge_llama.backends.base import AskedDevice, AskedSetting, CacheSize, Choice, Engine, Placement, TextTower
from edge_llama.backends.registry import engine_of
from edge_llama.files.artifact import Artifact
from edge_llama.files.formats import FORMATS
from edge_llama.host import devices
from edge_llama.planning.memory import ContextSize, context_size
from edge_llama.planning.options import OpenOptions

MAX_RUNNING = 8


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What was decided for a text tower; each part says why."""

    artifact: Artifact
    engine: Engine[Any]
    context: ContextSize
    choice: Choice
    placement: Placement
    max_running: int
    """Requests that shall be served at once."""

    @property
    def cache(self) -> CacheSize:
        """What the KV cache shall hold: beside the sequences that run, as many whose beginnings others may share."""
        n_sequences = 1 if self.max_running == 1 else 2 * self.max_running
        return CacheSize(self.context.n_ctx, self.context.n_cells, n_sequences)

    def open(self, threads: int) -> TextTower:
        """Load the model so. Raises ArtifactError or EngineError."""
        return self.engine.open(
            self.artifact,
            cache=self.cache,
            setting=self.choice.setting,
            placement=self.placement,
            threads=threads,
        )


def plan_engine(artifact: Artifact, options: OpenOptions, other_bytes: int = 0) -> EnginePlan:
    """Decide, with ``other_bytes`` of memory kept for the vision tower. Raises OptionError or EngineError."""
    engine, tune, asked = engine_of(artifact), options.get("tune", False), _asked(options)
    memory = max(0, devices.available_memory() - other_bytes)
    choice = engine.choose(artifact, asked, placement=None, tune=False)
    context = _sized(artifact, options, choice, memory)
    placement = engine.place(artifact, asked_device(options), context.bytes)
    if tune or placement.gpu_layers:
        choice = engine.choose(artifact, asked, placement=placement, tune=tune)
        context = _sized(artifact, options, choice, memory)
    max_running = 1 if options.get("deterministic") else options.get("max_running") or MAX_RUNNING
    return EnginePlan(artifact, engine, context, choice, placement, max_running)


def plan_context(artifact: Artifact, options: OpenOptions, available: int) -> ContextSize:
    """The context that the model gets in ``available`` bytes of memory. Loads no engine; raises OptionError."""
    choice = engine_of(artifact).choose(artifact, _asked(options), placement=None, tune=False)
    return _sized(artifact, options, choice, available)


def asked_device(options: OpenOptions) -> AskedDevice:
    """Where the caller wants the text tower."""
    return AskedDevice(
        options.get("device", "auto"),
        is_strict=options.get("strict_device", False),
        split_mode=options.get("split_mode"),
        tensor_split=tuple(options.get("tensor_split") or ()),
        cpu_moe=options.get("cpu_moe", False),
        provider_options=tuple(options.get("provider_options") or ()),
    )


def _asked(options: OpenOptions) -> AskedSetting:
    return AskedSetting(
        flash_attention=options.get("flash_attention"),
        kv_format=options.get("kv_format"),
        n_batch=options.get("n_batch"),
    )


def _sized(artifact: Artifact, options: OpenOptions, choice: Choice, available: int) -> ContextSize:
    kv_format, kv_cells = FORMATS[choice.setting.kv_format], options.get("kv_cells")
    return context_size(artifact, options.get("n_ctx"), kv_format, available, kv_cells)
