"""Nothing is left open that Python's development mode would tell of, and nothing else is warned of there either."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = """
import sys
import edge_llama
isolate, path = sys.argv[1] == "isolated", sys.argv[2]
with edge_llama.open(path, n_ctx=256, isolate=isolate) as model:
    chat = model.chat(system="Be brief.")
    for piece in chat.send("What is the capital of Japan?", temperature=0):
        pass
    chat.save(sys.argv[3])
    model.generate("The capital", max_tokens=3).result()
    model.generate("The capital").close()
    if not isolate:
        model.load_chat(sys.argv[3]).send("And in short?", max_tokens=2).result()
print(model.artifact.name)
left = edge_llama.open(path, n_ctx=64, isolate=isolate)  # by somebody who closes nothing
left.generate("The capital", max_tokens=1).result()
"""
EMBED = """
import sys
import edge_llama
with edge_llama.open(sys.argv[2]) as model:
    print(model.embed(["one", "another"]).shape)
"""


def strict(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Python as ``-X dev -W error`` has it: what is left open is told, what is warned of is an error."""
    command = [sys.executable, "-X", "dev", "-W", "error", *map(str, arguments)]  # -X tracemalloc=10 says where
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=250)


@pytest.mark.parametrize("where", ["here", "isolated"])
def test_the_library(small_talk: Path, tmp_path: Path, where: str) -> None:
    done = strict("-c", LIBRARY, where, small_talk, tmp_path / "saved")
    assert (done.returncode, done.stderr) == (0, "")


def test_embedding(bert: Path) -> None:
    done = strict("-c", EMBED, "here", bert)
    assert (done.returncode, done.stdout.count("("), done.stderr) == (0, 1, "")


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["run", "What is the capital of Japan?", "--temperature", "0", "--quiet"], "Notes."),
        (["chat", "--quiet", "--temperature", "0"], "What is the capital of Japan?\n"),
        (["devices"], ""),
        (["inspect"], ""),
    ],
)
def test_the_command_line(small_talk: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], stdin: str) -> None:
    monkeypatch.setenv("EDGE_LLAMA_MODEL", str(small_talk))
    done = strict("-m", "edge_llama", *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_a_stdin_that_is_closed(small_talk: Path) -> None:
    asked = f"run '{small_talk}' 'What is the capital of Japan?' --temperature 0 --quiet"
    line = f"exec '{sys.executable}' -X dev -W error -m edge_llama {asked} <&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
