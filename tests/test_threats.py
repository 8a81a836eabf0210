"""THREATS.md names a test for each check: each of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "THREATS.md").read_text("utf-8")


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 30
    missing = [each for each in named if f"def {each[1]}(" not in (ROOT / each[0]).read_text("utf-8")]
    assert not missing


def test_every_check_names_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("|") and not line.startswith(("|---", "| what may"))]
    assert [row for row in rows if "`tests/" not in row] == []


def test_every_file_that_is_named_exists() -> None:
    files = re.findall(r"[(`, ]((?:server|prompts|media|cli)/\w+\.py)`", TEXT)
    assert len(files) > 5
    assert [file for file in files if not (ROOT / "edge_llama" / file).is_file()] == []
