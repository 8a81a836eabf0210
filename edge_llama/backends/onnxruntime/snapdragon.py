"""Qualcomm's chips by the names that people know: what graphs for their NPUs are compiled for.

The numbers are ``soc_model`` of Qualcomm's QnnTypes.h and the version of the Hexagon processor. Source: ExecuTorch,
backends/qualcomm/serialization/qc_schema.py (commit 0e9182a, by Qualcomm), whose table these are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edge_llama.errors import OptionError

_NUMBERED = re.compile("([0-9]{1,4}):([0-9]{2,3})")


@dataclass(frozen=True, slots=True)
class Chip:
    """A chip, as Qualcomm's SDK numbers it."""

    name: str
    soc_model: int
    hexagon: int
    """The architecture of its NPU: 75 is v75."""

    @property
    def options(self) -> Mapping[str, str]:
        """What QNN's provider is told."""
        return {"soc_model": str(self.soc_model), "htp_arch": str(self.hexagon)}


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("SM8350", 30, 68),
        Chip("SM8450", 36, 69),
        Chip("SM8475", 42, 69),
        Chip("SM8550", 43, 73),
        Chip("SM8650", 57, 75),
        Chip("SM8750", 69, 79),
        Chip("SM8845", 97, 81),
        Chip("SM8850", 87, 81),
        Chip("QCM6490", 93, 68),
        Chip("QCS9100", 77, 73),
        Chip("SA8255", 52, 73),
        Chip("SA8295", 39, 68),
        Chip("SA8540", 62, 68),
        Chip("SA8797", 72, 81),
        Chip("SAR2230P", 95, 81),
        Chip("SSG2115P", 46, 73),
        Chip("SSG2125P", 58, 73),
        Chip("SW6100", 96, 81),
        Chip("SXR1230P", 45, 73),
        Chip("SXR2230P", 53, 69),
        Chip("SXR2330P", 75, 79),
    )
}
"""By their names, in capitals."""


def chip(name: str) -> Chip:
    """The chip called ``name``, in capitals or not, or numbered so: ``60:73`` is soc_model 60, Hexagon v73.

    OptionError with the known ones for another.
    """
    if found := CHIPS.get(name.upper()):
        return found
    if numbers := _NUMBERED.fullmatch(name):
        return Chip(name, *map(int, numbers.groups()))
    raise OptionError(
        f"--soc {name:.100}: unknown",
        remedy=f"known: {', '.join(CHIPS)}; another by soc_model and Hexagon's version, as 60:73",
    )
