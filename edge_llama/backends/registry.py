"""Opens a vision tower with the engine that its file is for. To add an engine, add it here."""

from edge_llama.backends.base import VisionTower
from edge_llama.files.artifact import VisionArtifact


def open_vision(artifact: VisionArtifact, *, threads: int, device: str = "cpu") -> VisionTower:
    """The tower in ``artifact``. Raises ArtifactError if its engine refuses it, EngineError, or OptionError."""
    if artifact.engine == "llama.cpp":
        from edge_llama.backends.llama_cpp.vision import LlamaCppVision  # noqa: PLC0415 - loads native code

        return LlamaCppVision(artifact, threads=threads)
    from edge_llama.backends.onnxruntime.vision import OnnxVision, require  # noqa: PLC0415 - loads native code

    require(artifact, device)
    return OnnxVision(artifact, threads=threads, device=device)
