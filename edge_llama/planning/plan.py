"""How a model will be opened: engine, context, settings, device. Decided before a weight is read."""

from dataclasses import dataclass
from typing import Any

from edge_llama.backends.base import TextTower
from edge_llama.backends.llama_cpp.settings import Choice, Setting, choose
from edge_llama.errors import OptionError
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf_text import GGUFArtifact
from edge_llama.files.onnx_text import OnnxArtifact
from edge_llama.files.text_artifact import Artifact
from edge_llama.host import devices
from edge_llama.planning.memory import ContextSize, context_size


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What was decided; each part says why."""

    artifact: Artifact
    context: ContextSize
    choice: Choice
    placement: devices.Placement

    @property
    def has_fixed_threads(self) -> bool:
        """Whether the engine keeps the number of threads that it was opened with."""
        return isinstance(self.artifact, OnnxArtifact)

    def open(self, threads: int) -> TextTower:
        """Load the model so. Raises ArtifactError or EngineError."""
        if isinstance(self.artifact, OnnxArtifact):
            return self._open_onnx(self.artifact, threads)
        assert isinstance(self.artifact, GGUFArtifact)  # noqa: S101 - there are two kinds
        from edge_llama.backends import crash_probe  # noqa: PLC0415 - loads native code
        from edge_llama.backends.llama_cpp.text import LlamaCppTower  # noqa: PLC0415

        settings: dict[str, Any] = {
            "flash_attention": self.choice.setting.flash_attention,
            "kv_format": self.choice.setting.kv_format,
            "n_batch": self.choice.setting.n_batch,
            "gpu_layers": self.placement.gpu_layers,
        }
        crash_probe.require(self.artifact, settings)
        return LlamaCppTower(self.artifact, n_ctx=self.context.n_ctx, threads=threads, **settings)

    def _open_onnx(self, artifact: OnnxArtifact, threads: int) -> TextTower:
        from edge_llama.backends.onnxruntime.text import OnnxTower, require  # noqa: PLC0415 - loads native code

        device, n_batch = self.placement.device, self.choice.setting.n_batch
        require(artifact, device)
        return OnnxTower(artifact, n_ctx=self.context.n_ctx, threads=threads, n_batch=n_batch, device=device)


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
    if isinstance(artifact, OnnxArtifact):
        return _plan_onnx(artifact, n_ctx, memory, device, given)
    assert isinstance(artifact, GGUFArtifact)  # noqa: S101 - there are two kinds
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


def _plan_onnx(
    artifact: OnnxArtifact, n_ctx: int | None, memory: int, device: str, given: dict[str, Any]
) -> EnginePlan:
    """The graph itself says how attention is computed and how the cache is stored: that can't be asked for."""
    for name, flag in (("flash_attention", "--flash-attn"), ("kv_format", "--kv")):
        if given[name] is not None:
            raise OptionError(
                f"{name} is {given[name]!r}, but ONNX Runtime runs {artifact.path}: its graph decides that",
                remedy=f"leave it out ({flag})",
            )
    n_batch = given["n_batch"]
    setting = Setting(flash_attention=None, kv_format=artifact.kv_format.name, n_batch=n_batch or Setting().n_batch)
    choice = Choice(setting, "as asked" if n_batch else "the default")
    context = context_size(artifact, n_ctx, artifact.kv_format, memory)
    placement = (
        devices.Placement(0, "the default", "cpu") if device == "auto" else devices.Placement(0, "as asked", device)
    )
    return EnginePlan(artifact, context, choice, placement)


def _engine_devices(wanted: str) -> list[devices.Device]:
    if wanted == "cpu":
        return []
    from edge_llama.backends.llama_cpp.text import available_devices  # noqa: PLC0415 - loads native code

    return available_devices()
