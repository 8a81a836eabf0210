"""What a conversion writes: one file per kind. A target lays out the whole output before a weight is read."""

from collections.abc import Collection
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.evidence.given import check_needed
from converters.options import Options, flag
from converters.target import FolderTarget, Target
from converters.targets.bundle import BUNDLE
from converters.targets.gguf_file import TEXT_FILE, VISION_FILE
from converters.targets.safetensors import SAFETENSORS
from converters.targets.writers import TEXT, VISION
from edge_llama.errors import OptionError
from edge_llama.files.gguf import is_named_gguf

FOLDERS: dict[str, FolderTarget] = {"safetensors": SAFETENSORS}
"""By what ``to`` says: targets that write all of a checkpoint into a folder, whatever that is called."""
_VALUES = {
    "to": tuple(dict.fromkeys(("gguf", *FOLDERS, *TEXT))),
    "tower": ("text", "vision", "all"),
    "vision_to": tuple(VISION),
    "vision_quant": tuple(dict.fromkeys(quant for writer in VISION.values() for quant in writer.quants)),
}


def choose(output: Path, checkpoint: Checkpoint, options: Options) -> tuple[Target, Options]:
    """The target for what was asked, and the options with what they left open; OptionError says what fits instead."""
    for name, values in _VALUES.items():
        if (value := getattr(options, name)) not in (None, *values):
            raise OptionError(f"{flag(name)} {value}: unknown", remedy=f"known: {', '.join(values)}")
    written = _towers(checkpoint, options.tower)
    target = _target(output, checkpoint, options, written)
    _check_foreign(options)
    chosen = target.chosen(options, written)
    check_needed(chosen)
    return target, chosen


def _check_foreign(options: Options) -> None:
    """OptionError for one that only another folder's target heeds."""
    for name, folder in FOLDERS.items():
        for option in folder.own_options if options.to != name else ():
            if getattr(options, option) is not None:
                raise OptionError(
                    f"{flag(option)}: is for --to {name} alone", remedy=f"add --to {name}, or leave it out"
                )


def has_vision(checkpoint: Checkpoint) -> bool:
    """Whether there is a vision tower beside the text tower."""
    return any(name.startswith("vision_model.") for name in checkpoint.tensors)


def _towers(checkpoint: Checkpoint, asked: str | None) -> tuple[str, ...]:
    """Which of the checkpoint's towers are written; OptionError if it lacks the one that ``asked`` names."""
    there = ("text", "vision") if has_vision(checkpoint) else ("text",)
    if asked in (None, "all"):
        return there
    if asked not in there:
        raise OptionError(
            f"--tower {asked}: {checkpoint.path} has a text tower alone", remedy="leave it out, or give another source"
        )
    return (asked,)


def _target(output: Path, checkpoint: Checkpoint, options: Options, written: Collection[str]) -> Target:
    is_file = is_named_gguf(output.name)
    if options.to in FOLDERS:
        return FOLDERS[options.to]
    if options.to == "onnx" and is_file:
        raise OptionError(f"--to onnx: {output} ends in .gguf", remedy="give a folder, or leave --to out")
    if is_file and len(written) > 1:
        raise OptionError(
            f"{output}: one .gguf file holds one tower, {checkpoint.path} has two, text and vision",
            remedy=f"add --tower text or --tower vision, or give a folder for both: {output.with_suffix('')}",
        )
    if is_file:
        return TEXT_FILE if "text" in written else VISION_FILE
    if has_vision(checkpoint) or options.to == "onnx":
        return BUNDLE
    if options.to is None:
        raise OptionError(
            f"{output}: what shall be written?", remedy="end the name in .gguf, or say --to gguf|onnx|safetensors"
        )
    return TEXT_FILE
