"""GGUF files as a source: tensors go back to Hugging Face's names and row order, metadata to a config."""

from pathlib import Path

from converters.architectures import for_gguf
from converters.checkpoint import Checkpoint, Tensor
from converters.metadata import generation_config
from converters.metadata.vocabulary import from_gguf
from converters.sources.file_rows import tensor_in
from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import Header, TensorInfo
from edge_llama.files.gguf_text import GGUFArtifact, read_gguf_text
from quant.dequantize import can_dequantize, takes_ggml
from quant.reference import ggml


def open_file(path: Path) -> Checkpoint:
    """The checkpoint that the GGUF file at ``path`` holds; quantized weights stay as they are until written."""
    artifact = read_gguf_text(path)
    header = artifact.header
    architecture = for_gguf(header)
    tensors = stored_tensors(artifact)
    config = architecture.config_from_gguf(header, tensors)
    return Checkpoint(
        path=path,
        name=header.get("general.name", str, path.stem),
        config=config,
        tensors=architecture.tensors_from_gguf(tensors, config, path),
        vocabulary=from_gguf(header),
        generation=generation_config.from_gguf(header),
        files=artifact.files,
        metadata=header.fields,
        warnings=tuple(f"{path}: {text}" for text in artifact.warnings),
    )


def stored_tensors(artifact: GGUFArtifact) -> dict[str, Tensor]:
    """All tensors under GGUF's names, as they lie in the files. CheckpointError for a format without a way back."""
    return {info.name: _tensor(part, info) for part in artifact.headers for info in part.tensors}


def _tensor(part: Header, info: TensorInfo) -> Tensor:
    """Formats for use inside a computation (q8_1, q8_k) or for other things than weights (i32) have no way back."""
    if not can_dequantize(info.format):
        raise CheckpointError(
            f"{part.path}: tensor {info.name!r} is stored as {info.format}, which ggml cannot dequantize",
            remedy="give a file in another format",
        )
    if takes_ggml(info.format):
        ggml.require(f"{part.path}: tensor {info.name!r} is stored as {info.format}, which only ggml can dequantize")
    return tensor_in(part.path, info.name, info.shape, info.format, info.offset)
