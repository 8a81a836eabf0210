"""How a model will be opened: engine, context, settings, device. Decided before a weight is read."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from edge_llama.backends.base import (
    AskedDevice,
    AskedSetting,
    CacheSize,
    Choice,
    Engine,
    Placement,
    Setting,
    TextTower,
)
from edge_llama.backends.estimates import Need
from edge_llama.backends.registry import engine_of
from edge_llama.errors import OptionError
from edge_llama.files.artifact import Artifact
from edge_llama.files.shape import TextShape
from edge_llama.host import devices
from edge_llama.planning.memory import ContextSize, Needed, context_size
from edge_llama.planning.options import OpenOptions

_log = logging.getLogger("edge_llama")
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
        return cache_size(self.context.n_ctx, self.context.n_cells, self.max_running)

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
    choice = _mapped(engine.choose(artifact, asked, placement=None, tune=False), artifact, options)
    context = _sized(artifact, options, choice, memory)
    placement = engine.place(artifact, asked_device(options), context.bytes)
    if tune or placement.gpu_layers:
        choice = _mapped(engine.choose(artifact, asked, placement=placement, tune=tune), artifact, options)
        context = _sized(artifact, options, choice, memory)
    return EnginePlan(artifact, engine, context, choice, placement, max_running_of(options))


def plan_context(artifact: Artifact, options: OpenOptions, available: int) -> ContextSize:
    """The context that the model gets in ``available`` bytes of memory. Loads no engine; raises OptionError."""
    choice = _mapped(
        engine_of(artifact).choose(artifact, _asked(options), placement=None, tune=False), artifact, options
    )
    return _sized(artifact, options, choice, available)


def fits_beside(artifact: Artifact, options: OpenOptions, available: int, other: int) -> bool:
    """Whether a model gets as much context in ``available`` bytes as with ``other`` more, which another model takes.

    OptionError if it does not fit even with those.
    """
    alone = plan_context(artifact, options, available + other)
    try:
        return plan_context(artifact, options, available) == alone
    except OptionError:
        return False


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


def max_running_of(options: OpenOptions) -> int:
    """Requests that shall be served at once."""
    return 1 if options.get("deterministic") else options.get("max_running") or MAX_RUNNING


def cache_size(n_ctx: int, n_cells: int, max_running: int) -> CacheSize:
    """With twice the sequences that run: others may begin as those do that are there no more."""
    return CacheSize(n_ctx, n_cells, 1 if max_running == 1 else 2 * max_running)


def needed(
    engine: Engine[Any], shape: TextShape, setting: Setting, max_running: int, *, is_reserved: bool = False
) -> Needed:
    """What a text tower of this shape takes, by its context and its cells; ``is_reserved``: see ``Engine.need``."""

    def need(n_ctx: int, n_cells: int) -> Need:
        return engine.need(shape, setting, cache_size(n_ctx, n_cells, max_running), is_reserved=is_reserved)

    return need


def _mapped(choice: Choice, artifact: Artifact, options: OpenOptions) -> Choice:
    """With weights that stay in their file, if that is asked for. OptionError where there is no such choice."""
    if not options.get("mmap"):
        return choice
    if artifact.engine != "llama.cpp":
        raise OptionError(
            f"mmap: {artifact.path} is run by {artifact.engine}, which has no such choice",
            remedy="leave it out (--mmap)",
        )
    lacking = artifact.weight_bytes - devices.available_memory()
    if lacking > 0:
        active = artifact.shape.active_bytes
        _log.warning(
            "%s: memory lacks %s bytes of its weights: up to %s of the %s that a token needs are read from the disk",
            *(artifact.path, f"{lacking:,}", f"{min(lacking, active):,}", f"{active:,}"),
        )
    return replace(choice, setting=replace(choice.setting, is_mapped=True))


def _sized(artifact: Artifact, options: OpenOptions, choice: Choice, available: int) -> ContextSize:
    return context_size(
        artifact,
        options.get("n_ctx"),
        needed(engine_of(artifact), artifact.shape, choice.setting, max_running_of(options)),
        available,
        kv_cells=options.get("kv_cells"),
        is_forced=options.get("force_fit", False),
    )
