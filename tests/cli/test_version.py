"""``edge-llama --version``."""

import subprocess
from collections.abc import Callable
from importlib.metadata import version


def test_the_version_is_all_that_is_printed(cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"edge-llama {version('edge-llama')}\n", "")
