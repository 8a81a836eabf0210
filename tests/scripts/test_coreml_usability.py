"""ONNX Runtime's own estimate of what Core ML would take of our graphs."""

from pathlib import Path

import coreml_usability
import pytest

import converters


@pytest.mark.parametrize("is_portable", [True, False], ids=["portable", "microsoft"])
def test_the_table_names_what_core_ml_does_not_take(is_portable: bool, small_talk: Path, tmp_path: Path) -> None:
    converters.convert(small_talk, tmp_path / "talk", to="onnx", quant="f16", portable=is_portable)
    is_, fixed = coreml_usability.estimates(tmp_path / "talk" / "model.onnx")
    assert is_.nodes == fixed.nodes > 20
    assert is_.taken < fixed.taken < fixed.nodes
    assert ("com.microsoft:GroupQueryAttention" in fixed.unknown) is not is_portable
    assert (fixed.taken > 0.9 * fixed.nodes) is is_portable
    head, _, row = coreml_usability.table([tmp_path / "talk"]).splitlines()
    assert head.count("|") == row.count("|")
    assert row.startswith("| talk | ")
