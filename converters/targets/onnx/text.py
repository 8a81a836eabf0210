"""ONNX, the text tower: a graph, its weights beside it, and the files with which onnxruntime-genai loads them."""

from collections.abc import Iterable
from typing import Any

from converters.architectures import for_config
from converters.checkpoint import Checkpoint
from converters.folder_files import encoded, end_ids, generation, special_ids
from converters.layout import Part
from converters.metadata import generation_config
from converters.options import Options
from converters.target import TowerFiles
from converters.targets.onnx import genai
from converters.targets.onnx.graph import MODEL
from converters.targets.onnx.llama import LlamaGraph
from converters.targets.onnx.llama4 import Llama4Graph
from converters.tokenizers.writer import write_files
from edge_llama.errors import CheckpointError
from quant.onnx_recipe import DEFAULT, OnnxRecipe
from quant.recipe import check_present

_GRAPHS: dict[str, tuple[type[LlamaGraph], str]] = {
    "llama": (LlamaGraph, "llama"),
    "mistral": (LlamaGraph, "mistral"),
    "qwen2": (LlamaGraph, "qwen2"),
    "qwen3": (LlamaGraph, "qwen3"),
    "smollm3": (LlamaGraph, "smollm3"),
    "gemma3": (LlamaGraph, "gemma3_text"),
    "llama4": (Llama4Graph, "llama"),
}
"""By ``Architecture.name``: what writes the graph, and what onnxruntime-genai calls such a model."""


def text_files(checkpoint: Checkpoint, options: Options) -> TowerFiles:
    """The text tower. CheckpointError if the checkpoint is not whole, OptionError if ``options`` don't fit it."""
    writer, kind, parts = _tower(checkpoint, options)
    ids = token_ids(checkpoint)
    settings = genai.config(kind, writer.hp, ids, checkpoint.generation, shares_cache=writer.ops.shares_cache)
    files = {
        "genai_config.json": settings,
        "generation_config.json": generation(checkpoint),
        **write_files(checkpoint.vocabulary, checkpoint.path),
    }
    return TowerFiles(parts, {name: encoded(content, name, checkpoint) for name, content in files.items()})


def text_sizes(checkpoint: Checkpoint, quants: Iterable[str]) -> dict[str, int]:
    """Bytes of these files for each of ``quants``: what lies beside the graph is the same for all."""
    beside = sum(map(len, text_files(checkpoint, Options()).files.values()))
    return {
        quant: beside + sum(part.nbytes for part in _tower(checkpoint, Options(quant=quant))[-1]) for quant in quants
    }


def _tower(checkpoint: Checkpoint, options: Options) -> tuple[LlamaGraph, str, tuple[Part, ...]]:
    """The graph's writer after its work, what onnxruntime-genai calls such a model, and its files."""
    architecture = for_config(checkpoint)
    recipe = OnnxRecipe(options.quant or DEFAULT, options.block or 32, options.zero_points, options.tensor_types)
    if architecture.name not in _GRAPHS:
        raise CheckpointError(
            f"{checkpoint.path}: {checkpoint.config['architectures'][0]} can't be written as ONNX",
            remedy="convert to GGUF: --to gguf",
        )
    graph_of, kind = _GRAPHS[architecture.name]
    tensors = architecture.tower_tensors(checkpoint)
    writer = graph_of(
        architecture.hyperparameters(checkpoint),
        tensors,
        recipe,
        is_portable=options.portable,
        gives_states=options.embeddings,
    )
    graph = writer.write()
    check_present(options.tensor_types, writer.roles)
    return writer, kind, (graph.part(MODEL), graph.data.part())


def token_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """The ids of special tokens as genai_config.json has them: all that end an answer, and a pad in any case."""
    vocabulary = checkpoint.vocabulary
    ids: dict[str, Any] = dict(special_ids(vocabulary))
    ends = generation_config.end_ids(checkpoint.generation) or end_ids(vocabulary)
    if ends:
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        ids.setdefault("pad_token_id", ends[0])
    return ids
