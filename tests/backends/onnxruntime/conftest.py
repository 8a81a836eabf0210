"""Fixtures for ONNX Runtime."""

from pathlib import Path

import pytest
from static_text import in_integers


@pytest.fixture(scope="package")
def static_folder(small_talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model that answers, as graphs of fixed shapes in integers."""
    return in_integers(small_talk, tmp_path_factory.mktemp("static"))
