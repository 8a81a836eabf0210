"""Models that several tests of llama.cpp share."""

from pathlib import Path
from typing import Any

import llama4
import pytest

import converters


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama 4 with two experts in every layer."""
    folder = tmp_path_factory.mktemp("experts")
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
    }
    llama4.text_only(folder / "checkpoint", interleave_moe_layer_step=1, **sizes)
    converters.convert(folder / "checkpoint", folder / "experts.gguf", quant="q8_0")
    return folder / "experts.gguf"
