"""What the script that builds for CUDA refuses; whether it builds is tried by hand, it takes an hour."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "cuda_build.sh"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a script for sh")


@pytest.mark.parametrize(
    ("arguments", "has_nvcc", "problem"),
    [
        ([], True, "scripts/cuda_build.sh SOURCE ARCHITECTURES [OUT]"),
        (["{folder}", "90"], False, "nvcc is not here: install the CUDA toolkit, and set CUDA_HOME"),
        (["{folder}", "90"], True, "no vendor/llama.cpp with ggml there: give llama-cpp-python's source"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_built(
    arguments: list[str], has_nvcc: bool, problem: str, tmp_path: Path
) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    if has_nvcc:
        nvcc.touch(mode=0o755)
    given = [each.format(folder=tmp_path) for each in arguments]
    environment = {"PATH": os.defpath, "CUDA_HOME": str(tmp_path)}
    done = subprocess.run(["sh", str(SCRIPT), *given], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert problem in done.stderr
    assert not done.stdout
