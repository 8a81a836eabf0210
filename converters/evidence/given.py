"""What a conversion was given that was measured of a model before: which files they are, and which tower needs them.

A file tells by itself what it is: ranges of values are JSON, an importance matrix is GGUF or an older ``.dat``.
"""

from pathlib import Path

from converters.options import Options
from edge_llama.errors import UNREADABLE, OptionError
from edge_llama.files.formats import FORMATS
from edge_llama.host.regular_files import opened
from quant.importance import Importance, read_importance
from quant.onnx_recipe import STATIC
from quant.ranges import Kind, Ranges, read_ranges
from quant.recipe import RECIPES

_FLAGS = {"text": "--quant", "vision": "--vision-quant"}
_FORMS: dict[Kind, tuple[str, ...]] = {"text": tuple(STATIC), "vision": ("a16w8",)}
"""Formats that are made by ranges of values."""
_DATA = {"text": "TEXT.txt", "vision": "PICTURE.jpg"}


def needs_ranges(quant: str | None, kind: Kind) -> bool:
    """Whether a tower in this format is made by ranges."""
    return quant in _FORMS[kind]


def is_importance(path: Path) -> bool:
    """Whether the file is an importance matrix, as its first bytes tell; OptionError if it can't be read."""
    try:
        with opened(path) as file:
            first = file.read(16)
    except OSError as error:
        raise OptionError(f"--calibration {path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    return first.startswith(b"GGUF") or b"\0" in first  # a .dat begins with a number in four bytes


def ranges_for(options: Options, kind: Kind, source: Path) -> Ranges:
    """The ranges of the tower of this kind among the files given. OptionError if there are none, or several."""
    given = [path for path in options.evidence if not is_importance(path)]
    found = [ranges for path in given if (ranges := read_ranges(path)).kind == kind]
    if len(found) == 1:
        return found[0]
    quant = options.quant if kind == "text" else options.vision_quant
    remedy = f"edge-llama calibrate {source} {_DATA[kind]} ranges.json, then add --calibration ranges.json"
    if found:
        remedy = f"leave one out: {', '.join(str(ranges.path) for ranges in found)}"
    raise OptionError(
        f"{_FLAGS[kind]} {quant}: is made by the ranges of the {kind} tower's values, "
        f"of which {len(found) or 'none'} are given",
        remedy=remedy,
    )


def importance_for(options: Options) -> Importance | None:
    """The importance matrix among the files given, None if there is none.

    OptionError if there are several; ArtifactError for what is damaged.
    """
    given = [path for path in options.evidence if is_importance(path)]
    if len(given) > 1:
        raise OptionError(
            f"--calibration: {len(given)} importance matrices are given",
            remedy=f"leave all but one out: {', '.join(map(str, given))}",
        )
    return read_importance(given[0]) if given else None


def check_needed(options: Options) -> None:
    """OptionError for a file that no tower is made by, or that can't be read."""
    quants: dict[Kind, str | None] = {"text": options.quant, "vision": options.vision_quant}
    for path in options.evidence:
        if is_importance(path):
            _check_weighs(path, options)
            continue
        kind = read_ranges(path).kind
        if not needs_ranges(quants[kind], kind):
            forms = " and ".join(_FORMS[kind])
            raise OptionError(
                f"--calibration {path}: has ranges of a {kind} tower, which {_FLAGS[kind]} {forms} alone is made by",
                remedy="leave it out",
            )


def _check_weighs(path: Path, options: Options) -> None:
    """OptionError for an importance matrix by which nothing that is written is quantized."""
    is_gguf = options.to in (None, "gguf") and options.quant in RECIPES
    formats = [FORMATS[name] for name in options.tensor_types.values() if name in FORMATS]
    if not is_gguf:
        why = "which a text tower in a GGUF file alone is quantized by"
    elif not any(format_.is_quantized for format_ in (RECIPES[options.quant or ""].default, *formats)):
        why = f"by which --quant {options.quant} quantizes nothing"
    else:
        return
    raise OptionError(f"--calibration {path}: is an importance matrix, {why}", remedy="leave it out")
