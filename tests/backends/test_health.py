"""The proof that llama.cpp works here, and what a broken build looks like."""

import os
import stat
import sys
from pathlib import Path

import pytest

from edge_llama import EngineError
from edge_llama.backends import health


def test_the_installed_engine_decodes() -> None:
    health.check()


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as interpreter")
def test_an_engine_that_kills_its_process_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real child that dies of SIGSEGV, as a build for another processor does."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nkill -SEGV $$\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(EngineError, match=r"died of signal 11.*-mno-amx-tile"):
        health.check()
