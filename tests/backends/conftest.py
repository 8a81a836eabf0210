"""What several tests of engines share."""

import stat
from pathlib import Path
from typing import Any

import llama4
import pytest

import converters
from edge_llama.host.user_cache import CACHE_VARIABLE


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


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def broken_interpreter(tmp_path: Path) -> str:
    """A real child that dies of SIGSEGV, as of a driver, or of a build for another processor."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nkill -SEGV $$\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    return str(fake)
