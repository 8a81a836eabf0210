"""How a model will be opened: context, settings, device. Decided before a weight is read."""

from dataclasses import dataclass
from typing import Any

from edge_llama import devices
from edge_llama.artifact import Artifact
from edge_llama.backends.base import TextTower
from edge_llama.choices import Choice, choose
from edge_llama.fit import ContextSize, context_size
from edge_llama.formats import FORMATS


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What was decided; each part says why."""

    artifact: Artifact
    context: ContextSize
    choice: Choice
    placement: devices.Placement

    def open(self, threads: int) -> TextTower:
        """Load the model so. Raises ArtifactError or EngineError."""
        from edge_llama.backends import first_run  # noqa: PLC0415 - loads native code
        from edge_llama.backends.llama_cpp import LlamaCppTower  # noqa: PLC0415

        settings: dict[str, Any] = {
            "flash_attention": self.choice.setting.flash_attention,
            "kv_format": self.choice.setting.kv_format,
            "n_batch": self.choice.setting.n_batch,
            "gpu_layers": self.placement.gpu_layers,
        }
        first_run.require(self.artifact, settings)
        return LlamaCppTower(self.artifact, n_ctx=self.context.n_ctx, threads=threads, **settings)


def plan_engine(
    artifact: Artifact,
    *,
    n_ctx: int | None,
    n_batch: int | None,
    flash_attention: bool | None,
    kv_format: str | None,
    device: str,
    tune: bool,
    other_bytes: int = 0,
) -> EnginePlan:
    """Decide, with ``other_bytes`` of memory kept for the vision tower.

    None leaves a value open; see :func:`edge_llama.open`. Raises OptionError or EngineError.
    """
    memory = max(0, devices.available_memory() - other_bytes)
    given: dict[str, Any] = {"flash_attention": flash_attention, "kv_format": kv_format, "n_batch": n_batch}
    choice = choose(artifact, **given)
    context = context_size(artifact, n_ctx, FORMATS[choice.setting.kv_format], memory)
    placement = devices.place(
        device,
        _engine_devices(device),
        n_layer=artifact.n_layer,
        weight_bytes=artifact.weight_bytes,
        cache_bytes=context.bytes,
    )
    if tune or placement.gpu_layers:
        choice = choose(artifact, **given, on_gpu=placement.gpu_layers > 0, tune=tune)
        context = context_size(artifact, n_ctx, FORMATS[choice.setting.kv_format], memory)
    return EnginePlan(artifact, context, choice, placement)


def _engine_devices(wanted: str) -> list[devices.Device]:
    if wanted == "cpu":
        return []
    from edge_llama.backends.llama_cpp import available_devices  # noqa: PLC0415 - loads native code

    return available_devices()
