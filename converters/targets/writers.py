"""The kinds of files that a tower may become, and what options they take: a new kind is a file and a line here."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, replace

from converters.options import Options, flag
from converters.target import TowerWriter
from converters.targets.gguf import GGUF
from converters.targets.mmproj import MMPROJ
from converters.targets.onnx import ONNX_TEXT, ONNX_VISION
from edge_llama.errors import OptionError

TEXT: Mapping[str, TowerWriter] = {"gguf": GGUF, "onnx": ONNX_TEXT}
"""By what ``to`` says."""
VISION: Mapping[str, TowerWriter] = {"onnx": ONNX_VISION, "gguf": MMPROJ}
"""By what ``vision_to`` says; the first is taken if it says nothing."""


def check_heeded(options: Options, text: Collection[str] | None, *, has_vision: bool) -> None:
    """OptionError for one that would be without effect.

    ``text``: what is heeded of the options for a text tower, None if none is written; ``has_vision``: whether one is.
    """
    heeded = (_heeded(TEXT) if text is not None else set()) | (_heeded(VISION) if has_vision else set())
    for tower, known, is_written in (("text", TEXT, text is not None), ("vision", VISION, has_vision)):
        for name in () if is_written else _given(options, known):
            if name in heeded:
                continue
            instead = ", or say --vision-quant" if name == "quant" else ""
            raise OptionError(
                f"{flag(name)}: is for a {tower} tower, and none is written so", remedy=f"leave it out{instead}"
            )
    for name in _given(options, TEXT):
        if text is not None and name not in text and not (has_vision and name in _heeded(VISION)):
            owners = " and ".join(writer.label for writer in TEXT.values() if name in writer.options)
            raise OptionError(f"{flag(name)}: is for {owners} alone", remedy="leave it out")


def _heeded(writers: Mapping[str, TowerWriter]) -> set[str]:
    """The options that some of ``writers`` heed."""
    return {name for writer in writers.values() for name in writer.options}


def _given(options: Options, writers: Mapping[str, TowerWriter]) -> Iterator[str]:
    """The options that are given and that some of ``writers`` heed."""
    heeded = _heeded(writers)
    return (field.name for field in fields(options) if field.name in heeded and getattr(options, field.name))


def with_quant(options: Options, called: str, quants: Collection[str], default: str) -> Options:
    """``options`` with the text tower's recipe, one of ``quants`` of the target that errors call so."""
    quant = options.quant or default
    if quant not in quants:
        raise OptionError(f"--quant {quant}: not for {called}", remedy=f"known: {', '.join(quants)}")
    return replace(options, quant=quant)


def with_vision_quant(options: Options, vision_to: str) -> Options:
    """``options`` with the vision tower's format and its kind of file, ``vision_to``."""
    writer = VISION[vision_to]
    quant = options.vision_quant or writer.default_quant
    if quant not in writer.quants:
        raise OptionError(
            f"--vision-quant {quant}: not for {vision_to}",
            remedy=f"known: {', '.join(writer.quants)}; or add --vision-to {'gguf' if vision_to == 'onnx' else 'onnx'}",
        )
    options = replace(options, vision_quant=quant, vision_to=vision_to)
    writer.check(options)
    return options


def check_same_kind(options: Options, towers: Collection[str]) -> None:
    """OptionError where a vision tower alone is asked for in two kinds of files."""
    if "text" not in towers and options.to and options.vision_to not in (None, options.to):
        raise OptionError(f"--to {options.to}: --vision-to says {options.vision_to}", remedy="leave one of them out")
