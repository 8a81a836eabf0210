"""One place to add a thing: a copy of the package with just that changed has the thing everywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERB = '''
"""``edge-llama weigh``: a verb of a test."""

from typing import Annotated

import typer


def weigh(model: Annotated[str, typer.Argument(help="A file.")]) -> None:
    """Weigh a model.

    Example: edge-llama weigh model.gguf
    """
    print(f"{model} is heavy")
'''
OPTION = '''
    mood: Annotated[str | None, Option(text=OptionText(help="How it shall feel."))]
    """A word."""
'''
PROGRAM = """
import edge_llama

edge_llama.open("model.gguf", mood="glad")
edge_llama.open("model.gguf", mood=3)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the runtime, for Python's path."""
    shutil.copytree(ROOT / "edge_llama", tmp_path / "site" / "edge_llama")
    return tmp_path / "site"


def run(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True, check=False)


def edge_llama(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(site, "-c", "from edge_llama.cli import main; main()", *arguments)


def test_a_verb_is_a_file(copy: Path) -> None:
    (copy / "edge_llama" / "cli" / "weigh.py").write_text(VERB)
    assert edge_llama(copy, "weigh", "model.gguf").stdout == "model.gguf is heavy\n"
    assert "Weigh a model." in edge_llama(copy, "--help").stdout


def test_an_option_of_open_is_a_field(copy: Path, small_talk: Path) -> None:
    options = copy / "edge_llama" / "planning" / "options.py"
    before, place, after = options.read_text("utf-8").partition("    tune: bool\n")
    assert place
    options.write_text(before + OPTION + place + after, "utf-8")
    for verb in ("run", "chat"):
        assert "How it shall feel." in edge_llama(copy, verb, "--help").stdout
    done = edge_llama(copy, "run", small_talk, "Hi", "--mood", "glad", "--max-tokens", "1")
    assert done.returncode == 0, done.stderr
    code = f"import edge_llama; edge_llama.open({str(small_talk)!r}, mood='glad', n_ctx=64).close()"
    assert run(copy, "-c", code).returncode == 0
    program = copy / "program.py"
    program.write_text(PROGRAM)
    found = run(copy, "-m", "mypy", "--strict", program)
    assert 'Argument "mood" to "open" has incompatible type "int"' in found.stdout
    assert "Found 1 error" in found.stdout, found.stdout
