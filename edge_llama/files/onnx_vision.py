"""A vision tower in an ONNX file of a bundle, whose manifest says what the graph does not. No native code."""

from pathlib import Path

from edge_llama.errors import ArtifactError
from edge_llama.files.artifact import VisionArtifact, main_format, vision_identity
from edge_llama.files.manifest import bundle_of, read_manifest
from edge_llama.files.onnx_graph_file import read_onnx
from edge_llama.files.vision_spec import VisionSpec

VISION_INPUT, VISION_OUTPUT = "pixel_values", "image_features"
"""What the graph takes, float32 (tiles, 3, side, side), and gives, float32 (tiles, tokens, n_embd)."""


def read_onnx_vision(path: Path, spec: VisionSpec, name: str, format_: str = "") -> VisionArtifact:
    """The tower at ``path``; ``format_`` is its matrices', told by its tensors where it is not given.

    ArtifactError names what is wrong.
    """
    graph = read_onnx(path)
    if graph.inputs != (VISION_INPUT,) or graph.outputs != (VISION_OUTPUT,):
        raise ArtifactError(
            f"{path}: from {', '.join(graph.inputs)!r:.100} to {', '.join(graph.outputs)!r:.100}, expected "
            f"{VISION_INPUT!r} to {VISION_OUTPUT!r}",
            remedy="convert again",
        )
    return VisionArtifact(
        path=path,
        engine="onnxruntime",
        spec=spec,
        identity=vision_identity(spec, *graph.identified()),
        name=name,
        format=format_ or main_format(graph.tensors),
        nbytes=sum(file.stat().st_size for file in graph.files),
        files=graph.files,
        tensors=graph.tensors,
    )


def read_from_bundle(path: Path) -> VisionArtifact:
    """The tower at ``path``, by the bundle that it lies in. ArtifactError if there is none."""
    manifest = read_manifest(bundle_of(path))
    assert manifest.vision and manifest.images  # noqa: S101, PT018 - so it is found
    return read_onnx_vision(path, manifest.images, manifest.name, manifest.vision.format)
