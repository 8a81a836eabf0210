"""What a conversion writes: one file per kind. A target lays out the whole output before a weight is read."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from converters.checkpoint import Checkpoint
from converters.options import Options
from converters.targets import bundle, gguf, mmproj, safetensors
from converters.targets.bundle import has_vision, towers
from edge_llama.errors import OptionError
from quant import onnx_recipe

_VALUES = {
    "to": ("gguf", "safetensors", "onnx"),
    "tower": ("text", "vision", "all"),
    "vision_to": tuple(bundle.VISION_ENGINES),
    "vision_quant": tuple(dict.fromkeys(name for names in bundle.VISION_QUANTS.values() for name in names)),
}
_FOR_TEXT = ("quant", "tensor_types", "block", "zero_points", "portable", "max_shard_bytes", "chat_template", "lora")
_FOR_VISION = ("vision_to", "vision_quant", "ranges")
_FOR_GGUF, _FOR_ONNX = ("max_shard_bytes",), ("block", "zero_points", "portable")
_FLAGS = {"tensor_types": "--tensor-type", "max_shard_bytes": "--max-shard-size"}


def choose(output: Path, checkpoint: Checkpoint, options: Options) -> tuple[ModuleType, Options]:
    """The target for what was asked, and the options with what they left open; OptionError says what fits instead.

    A target has ``QUANTS``, ``DEFAULT_QUANT`` and ``lay_out(checkpoint, name, options) -> Layout``.
    """
    for name, values in _VALUES.items():
        if (value := getattr(options, name)) not in (None, *values):
            raise OptionError(f"{_flag(name)} {value}: unknown", remedy=f"known: {', '.join(values)}")
    written = towers(checkpoint, options.tower)
    target = _target(output, checkpoint, options, written)
    _check_fit(target, options, written)
    if "text" in written:
        options = replace(options, quant=_quant(target, options))
    if "vision" in written and target in (bundle, mmproj):
        alone = options.to if "text" not in written else None
        vision_to = "gguf" if target is mmproj else options.vision_to or alone or bundle.DEFAULT_VISION
        options = replace(options, vision_quant=_vision_quant(vision_to, options.vision_quant), vision_to=vision_to)
        _check_ranges(options)
    return target, options


def _quant(target: ModuleType, options: Options) -> str:
    is_onnx = options.to == "onnx"
    known: tuple[str, ...] = tuple(onnx_recipe.RECIPES) if is_onnx else target.QUANTS
    quant: str = options.quant or (onnx_recipe.DEFAULT if is_onnx else target.DEFAULT_QUANT)
    if quant not in known:
        name = "onnx" if is_onnx else target.__name__.rpartition(".")[2]
        raise OptionError(f"--quant {quant}: not for {name}", remedy=f"known: {', '.join(known)}")
    return quant


def _vision_quant(vision_to: str, asked: str | None) -> str:
    quant, known = asked or mmproj.DEFAULT_QUANT, bundle.VISION_QUANTS[vision_to]
    if quant not in known:
        raise OptionError(
            f"--vision-quant {quant}: not for {vision_to}",
            remedy=f"known: {', '.join(known)}; or add --vision-to {'gguf' if vision_to == 'onnx' else 'onnx'}",
        )
    return quant


def _check_ranges(options: Options) -> None:
    """OptionError unless there are ranges where they are needed, and only there."""
    if options.vision_quant == "a16w8" and options.ranges is None:
        raise OptionError(
            "--vision-quant a16w8: needs to know the ranges of values",
            remedy="convert to f32, measure with edge-llama calibrate, and add --ranges FILE",
        )
    if options.vision_quant != "a16w8" and options.ranges is not None:
        raise OptionError(f"--ranges {options.ranges}: is for --vision-quant a16w8 alone", remedy="leave it out")


def _target(output: Path, checkpoint: Checkpoint, options: Options, written: tuple[str, ...]) -> ModuleType:
    is_file = output.suffix == ".gguf"
    if options.to == "safetensors":
        return safetensors
    if options.to == "onnx" and is_file:
        raise OptionError(f"--to onnx: {output} ends in .gguf", remedy="give a folder, or leave --to out")
    if is_file and len(written) > 1:
        raise OptionError(
            f"{output}: one .gguf file holds one tower, {checkpoint.path} has two, text and vision",
            remedy=f"add --tower text or --tower vision, or give a folder for both: {output.with_suffix('')}",
        )
    if is_file:
        return gguf if "text" in written else mmproj
    if has_vision(checkpoint) or options.to == "onnx":
        return bundle
    if options.to is None:
        raise OptionError(
            f"{output}: what shall be written?", remedy="end the name in .gguf, or say --to gguf|onnx|safetensors"
        )
    return gguf


def _check_fit(target: ModuleType, options: Options, written: tuple[str, ...]) -> None:
    """OptionError for what would be without effect."""
    if target is safetensors and options.tower not in (None, "all"):
        raise OptionError(f"--tower {options.tower}: not for safetensors", remedy="leave it out: the folder is whole")
    unfit: tuple[str, ...] = () if "text" in written else _FOR_TEXT
    unfit += () if "vision" in written and target is not safetensors else _FOR_VISION
    for name in (name for name in unfit if getattr(options, name)):
        tower = "text" if name in _FOR_TEXT else "vision"
        instead = ", or say --vision-quant" if name == "quant" else ""
        raise OptionError(
            f"{_flag(name)}: is for a {tower} tower, and none is written so", remedy=f"leave it out{instead}"
        )
    for name in (name for name in (_FOR_GGUF if options.to == "onnx" else _FOR_ONNX) if getattr(options, name)):
        kind = "GGUF" if name in _FOR_GGUF else "ONNX"
        raise OptionError(f"{_flag(name)}: is for {kind} alone", remedy="leave it out")
    if options.portable and options.zero_points:
        raise OptionError("--zero-points: not with --portable", remedy="leave one of them out")
    if target is mmproj and options.vision_to == "onnx":
        raise OptionError("--vision-to onnx: a .gguf file can't hold it", remedy="give a folder, or leave it out")
    if "text" not in written and options.to and options.vision_to not in (None, options.to):
        raise OptionError(f"--to {options.to}: --vision-to says {options.vision_to}", remedy="leave one of them out")


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))
