"""examples/extract.py: each text has one line that fits the schema, whenever it was killed before."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "year": {"type": "integer", "minimum": 1}},
    "required": ["name", "year"],
    "additionalProperties": False,
}
TEXTS = {
    "ada.txt": "Ada Lovelace was born in 1815.",
    "alan.txt": "Alan Turing was born in 1912.",
    "deeper/grace.md": "Grace Hopper was born in 1906.",
    "emmy.txt": "Emmy Noether was born in 1882.",
    "kurt.txt": "Kurt Gödel was born in 1906.",
    "marie.txt": "Marie Curie was born in 1867.",
}


@pytest.fixture
def work(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder with texts, the schema, and where the lines go."""
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text, "utf-8")
    (tmp_path / "texts" / "picture.png").write_bytes(b"no text")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    return tmp_path / "texts", schema, tmp_path / "out.jsonl"


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


def test_killed_and_started_again_nothing_is_twice_and_nothing_lost(
    work: tuple[Path, Path, Path], start: Callable[..., Any], run: Callable[..., str]
) -> None:
    output = work[2]
    with start("extract.py", *work, "--max-tokens", 60) as program:
        while not (output.exists() and output.read_bytes()) and program.poll() is None:
            time.sleep(0.01)
        program.kill()
    before = output.read_bytes()
    os.truncate(output, len(before) - 3)  # as if it was killed within a write
    printed = run("extract.py", *work, "--max-tokens", 60)
    assert "a half-written line is taken back" in printed
    found = lines(output)
    assert [line["file"] for line in found] == sorted(TEXTS)
    for line in found:
        jsonschema.validate(line["data"], SCHEMA)
    assert "6 texts, 6 done before" in run("extract.py", *work)
    assert lines(output) == found


def test_what_cant_be_answered_has_a_line_that_says_why(
    work: tuple[Path, Path, Path], small_talk: Path, run: Callable[..., str]
) -> None:
    folder, _, output = work
    for name in TEXTS:
        (folder / name).unlink()
    (folder / "latin.txt").write_bytes("Gödel".encode("latin-1"))
    (folder / "long.txt").write_text("word " * 20_000)
    run("extract.py", *work, "--model", small_talk, code=1)
    latin, long = lines(output)
    assert latin["error"] == "byte 1 is no UTF-8; save it as UTF-8"
    assert "tokens but the context holds" in long["error"]
    assert "2 done before" in run("extract.py", *work, "--model", small_talk)
    (folder / "latin.txt").write_text("Gödel", "utf-8")  # a text that changed is another one
    printed = run("extract.py", *work, "--model", small_talk, "--max-tokens", 2, code=1)
    assert "1 done before" in printed
    assert "not whole after 2 tokens" in lines(output)[-1]["error"]
    assert "0 done before" in run("extract.py", *work, "--model", small_talk, "--retry", "--max-tokens", 2, code=1)


@pytest.mark.parametrize("line", ["[]", "no json", '{"file": "a", "sha256": "b", "schema": "of another"}'])
def test_an_output_of_something_else_is_refused_and_left(
    line: str, work: tuple[Path, Path, Path], run: Callable[..., str]
) -> None:
    work[2].write_text(f"{line}\n")
    assert "line 1 " in run("extract.py", *work, code=1)
    assert work[2].read_text() == f"{line}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a stopped process is POSIX")
def test_two_at_once_are_refused(
    work: tuple[Path, Path, Path], start: Callable[..., Any], run: Callable[..., str]
) -> None:
    with start("extract.py", *work) as program:
        assert "6 texts" in program.stdout.readline()
        program.send_signal(signal.SIGSTOP)
        try:
            assert "another run is writing it" in run("extract.py", *work, code=1)
        finally:
            program.kill()
