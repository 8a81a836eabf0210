"""What was measured of a model before it is converted: files whose schema says what they are about."""

from pathlib import Path

from converters.options import Options
from edge_llama.errors import OptionError
from quant.onnx_recipe import STATIC
from quant.ranges import Kind, Ranges, read_ranges

_FLAGS = {"text": "--quant", "vision": "--vision-quant"}
_FORMS: dict[Kind, tuple[str, ...]] = {"text": tuple(STATIC), "vision": ("a16w8",)}
"""Formats that are made by ranges of values."""
_DATA = {"text": "TEXT.txt", "vision": "PICTURE.jpg"}


def needs_ranges(quant: str | None, kind: Kind) -> bool:
    """Whether a tower in this format is made by ranges."""
    return quant in _FORMS[kind]


def ranges_for(options: Options, kind: Kind, source: Path) -> Ranges:
    """The ranges of the tower of this kind among the files given. OptionError if there are none, or several."""
    found = [ranges for path in options.evidence if (ranges := read_ranges(path)).kind == kind]
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


def check_needed(options: Options) -> None:
    """OptionError for a file that no tower is made by, or that can't be read."""
    quants: dict[Kind, str | None] = {"text": options.quant, "vision": options.vision_quant}
    for path in options.evidence:
        kind = read_ranges(path).kind
        if not needs_ranges(quants[kind], kind):
            forms = " and ".join(_FORMS[kind])
            raise OptionError(
                f"--calibration {path}: has ranges of a {kind} tower, which {_FLAGS[kind]} {forms} alone is made by",
                remedy="leave it out",
            )
