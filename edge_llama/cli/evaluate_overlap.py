"""Whether a model was calibrated on a text that it is evaluated on, as far as its file tells."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_llama.errors import InputError
from edge_llama.fidelity.texts import Text, default_texts, hashes, overlap

DATASET = "quantize.imatrix.dataset"
"""The key by which llama-quantize names what an importance matrix was measured on."""
HASHES = "edge_llama.importance.text_hashes"
"""Of the texts themselves, as :func:`edge_llama.fidelity.texts.hashes` gives them."""
OWN = "edge-llama calibration"
"""What the project's own texts are called there."""
_NOTABLE = 0.02
"""Of a text's windows: less may be a phrase that every licence has."""


def warnings(file: str, metadata: Mapping[str, Any], texts: Sequence[Text]) -> Iterator[str]:
    """A sentence for each text of which the file says that it, or a part, was calibrated on."""
    dataset = str(metadata.get(DATASET) or "")
    names = {Path(part.strip().replace("\\", "/")).name for part in dataset.split(",")}
    kept = metadata.get(HASHES)
    if kept is None and dataset == OWN:
        kept = hashes(default_texts("calibration"))
    for text in texts:
        share = _share(text, kept)
        if text.name in names or share >= _NOTABLE:
            how_much = f" ({100 * share:.0f} % of it)" if _NOTABLE <= share < 1 else ""
            yield f"warning: {file} was calibrated on {text.name}{how_much}: it does better there than elsewhere"


def _share(text: Text, kept: object) -> float:
    """How much of the text is known; 0 where that can't be told."""
    if not isinstance(kept, str):
        return 0.0
    try:
        share = overlap([text], kept)
    except InputError:  # hashes of another form: by the name, then
        return 0.0
    return share if share == share else 0.0  # noqa: PLR0124 - NaN: too short to tell
