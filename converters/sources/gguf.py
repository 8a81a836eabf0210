"""GGUF files as a source: tensors go back to Hugging Face's names and row order, metadata to a config."""

from pathlib import Path

from converters.architectures import for_gguf
from converters.checkpoint import Checkpoint, Tensor
from converters.sources.safetensors import reader
from converters.vocabulary import from_gguf
from edge_llama.artifact import read_artifact


def open_file(path: Path) -> Checkpoint:
    """The checkpoint that the GGUF file at ``path`` holds; quantized weights stay as they are until written."""
    header = read_artifact(path).header
    architecture = for_gguf(header)
    tensors = {
        info.name: Tensor(
            info.name, info.shape, info.format, reader(path, info.offset, info.format.row_bytes(info.shape[-1]))
        )
        for info in header.tensors
    }
    config = architecture.config_from_gguf(header)
    return Checkpoint(
        path=path,
        name=header.get("general.name", str, path.stem),
        config=config,
        tensors=architecture.tensors_from_gguf(tensors, config, path),
        vocabulary=from_gguf(header),
        generation={},
    )
