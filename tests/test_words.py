"""Names are the field's standard terms: house words that meant several things don't come back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BANNED = {"turned", "keeper", "keepers", "parking", "hastened", "grown", "pictured", "made"}
"""Parts of identifiers; say rotated, transposed, permuted, cache owner, KV store: see ARCHITECTURE.md."""
OTHERS = {"connection_made"}
"""Names that other packages call by: asyncio's protocols."""
FOLDERS = ("edge_llama", "converters", "quant", "benchmarks", "examples", "scripts", "tests")
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def identifiers(path: Path) -> Iterator[str]:
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(name=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_identifier_is_a_house_word(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / folder).rglob("*.py")
        for name in identifiers(path)
        if name not in OTHERS and {part.lower() for part in PART.findall(name)} & BANNED
    }
    assert not found
