"""A bundle: a folder with the towers of a model, each for its engine, and a manifest that says how they are run.

The text tower is a GGUF file (or several) or an ONNX file with its weights beside it; so is the vision tower, whose
GGUF file is called mmproj. The checkpoint's licence files go along; the manifest is made last, since it holds every
file's hash.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from converters.architectures import llama4_vision
from converters.checkpoint import Checkpoint
from converters.options import Options
from converters.targets import gguf, mmproj
from converters.targets.layout import Closing, Layout, Part
from edge_llama.errors import CheckpointError, OptionError
from edge_llama.files.manifest import NAME, Manifest, StoredFile, Tower

QUANTS = gguf.QUANTS
DEFAULT_QUANT = gguf.DEFAULT_QUANT
VISION_ENGINES = {"onnx": "onnxruntime", "gguf": "llama.cpp"}
"""What ``vision_to`` may say, and the engine for it."""
VISION_QUANTS = {"onnx": ("f16", "f32", "int8", "int4", "a16w8"), "gguf": mmproj.QUANTS}
DEFAULT_VISION = "onnx"


def has_vision(checkpoint: Checkpoint) -> bool:
    """Whether there is a vision tower beside the text tower."""
    return any(name.startswith("vision_model.") for name in checkpoint.tensors)


def towers(checkpoint: Checkpoint, asked: str | None) -> tuple[str, ...]:
    """Which of the checkpoint's towers are written; OptionError if it lacks the one that ``asked`` names."""
    there = ("text", "vision") if has_vision(checkpoint) else ("text",)
    if asked in (None, "all"):
        return there
    if asked not in there:
        raise OptionError(
            f"--tower {asked}: {checkpoint.path} has a text tower alone", remedy="leave it out, or give another source"
        )
    return (asked,)


def lay_out(checkpoint: Checkpoint, _name: str, options: Options) -> Layout:
    """The folder of the towers for which ``options`` name a format.

    CheckpointError if the checkpoint is not whole, OptionError if ``options`` don't fit it.
    """
    text, files = _text(checkpoint, options) if options.quant else ((), {})
    engine, form = ("onnxruntime", options.quant or "") if options.to == "onnx" else ("llama.cpp", "")
    manifest = Manifest(
        name=checkpoint.name,
        writer=f"edge-llama {version('edge-llama')}",
        files={},
        text=Tower(engine, text[0].name, form) if text else None,
        generation=checkpoint.generation,
    )
    vision: tuple[Part, ...] = ()
    if options.vision_quant and options.vision_to:
        vision = _vision(checkpoint, options.vision_to, options.vision_quant, options)
        tower = Tower(VISION_ENGINES[options.vision_to], vision[0].name, options.vision_quant)
        manifest = replace(manifest, vision=tower, images=llama4_vision.spec(checkpoint))
    closing = _closing(manifest, checkpoint.path)
    closing({})  # what it can't hold shows now
    return Layout((*text, *vision), {**checkpoint.provenance.notices, **files}, is_folder=True, closing=closing)


def _text(checkpoint: Checkpoint, options: Options) -> tuple[tuple[Part, ...], dict[str, bytes]]:
    """The text tower's files, of which its engine opens the first, and small ones."""
    if options.to != "onnx":
        return gguf.lay_out(checkpoint, "text.gguf", options).parts, {}
    from converters.targets.onnx.text import text_files  # noqa: PLC0415 - its library takes a third of a second to load

    made = text_files(checkpoint, options)
    return made.parts, made.files


def _vision(checkpoint: Checkpoint, kind: str, format_name: str, options: Options) -> tuple[Part, ...]:
    """The vision tower's files, of which its engine opens the first."""
    if kind == "gguf":
        return (mmproj.part(checkpoint, format_name, "mmproj.gguf"),)
    from converters.targets.onnx import vision  # noqa: PLC0415 - its library takes a third of a second to load

    ranges = None if options.ranges is None else Path(options.ranges)
    return tuple(vision.vision_parts(checkpoint, format_name, "vision", ranges, is_portable=options.portable))


def _closing(manifest: Manifest, source: Path) -> Closing:
    def close(files: Mapping[str, StoredFile]) -> dict[str, bytes]:
        try:
            return {NAME: replace(manifest, files=files).encode()}
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{source}: {NAME} can't hold its name and its generation_config.json: {error}",
                remedy="correct them, or download the folder again",
            ) from error

    return close
