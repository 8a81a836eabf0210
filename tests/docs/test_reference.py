"""Every public name has a docstring with an example that is run, and stands on a page of docs/reference/."""

import ast
import asyncio
import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pytest
from page_code import ROOT, blocks

import edge_llama

MODULES = ("edge_llama", "edge_llama.convert", "edge_llama.fit", "edge_llama.compile")
NAMES = [f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__]
REFERENCE = ROOT / "docs" / "reference"
ROW = re.compile(r"^\| \[`([\w.]+)`\]\((\S+)\) \| .+ \|$", re.MULTILINE)
FOR_FRONT_ENDS = {
    *("Model.prefetch", "Model.require_vision", "Model.resume_chat", "Chat.prefetch"),
    *("Model.adapter_set", "Model.tokens_to_prefill"),
    *("Generation.close", "Generation.watch"),
}
"""Methods that programs like ours call, or that a `with` does."""
OPTIONS = doctest.ELLIPSIS


def docstring(name: str) -> str:
    """What a class or function says of itself, or the text below an alias in its module."""
    module, _, short = name.rpartition(".")
    thing = getattr(importlib.import_module(module), short)
    if isinstance(thing, type) or inspect.isfunction(thing):
        return inspect.getdoc(thing) or ""
    return next((text for source in sources() if (text := below(source, short))), "")


def sources() -> Iterator[Path]:
    """The files of the modules that are loaded, the packages that define aliases first."""
    for found in list(sys.modules.values()):
        file = getattr(found, "__file__", None)
        if file and found.__name__.startswith("edge_llama.") and file.endswith(".py"):
            yield Path(file)


def below(source: Path, name: str) -> str:
    """The docstring of a module's variable: the text in the line after it."""
    body = ast.parse(source.read_text("utf-8")).body
    for node, after in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        is_it = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if is_it and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return inspect.cleandoc(str(after.value.value))
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_an_example_that_is_run(
    name: str, clone: Path, small: edge_llama.Model, small_talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LLAMA_MODEL", str(small_talk))
    (clone / "small.gguf").symlink_to(small_talk)
    names: dict[str, Any] = {"asyncio": asyncio, "Unpack": Unpack, "np": np, "edge_llama": edge_llama, "model": small}
    example = doctest.DocTestParser().get_doctest(docstring(name), names, name, None, 0)
    assert example.examples, f"{name} has no example in its docstring"
    told: list[str] = []
    done = doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=told.append)
    assert done.failed == 0, "".join(told)


def test_the_reference_pages_have_every_name_once() -> None:
    found = [name for page in REFERENCE.glob("*.md") for name, _ in ROW.findall(page.read_text("utf-8"))]
    assert sorted(found) == sorted(NAMES)


def test_names_lead_to_where_they_are_defined() -> None:
    rows = [row for page in REFERENCE.glob("*.md") for row in ROW.findall(page.read_text("utf-8"))]
    for name, link in rows:
        text = (REFERENCE / link).read_text("utf-8")
        assert re.search(rf"^(class |def )?{name.rpartition('.')[2]}\b", text, re.MULTILINE), (name, link)


@pytest.mark.parametrize(
    "kind",
    [
        *(edge_llama.Model, edge_llama.Chat, edge_llama.Generation),
        *(edge_llama.Image, edge_llama.Message, edge_llama.ToolCall),
    ],
)
def test_every_method_is_in_some_example(kind: type) -> None:
    """Of a docstring, or of a page."""
    methods = [name for name, _ in inspect.getmembers(kind, is_method) if not name.startswith("_")]
    code = examples()
    missing = [name for name in methods if f".{name}(" not in code and f"{kind.__name__}.{name}" not in FOR_FRONT_ENDS]
    assert missing == []


def is_method(thing: object) -> bool:
    """Of a class, class methods among them."""
    return inspect.isfunction(thing) or inspect.ismethod(thing)


def examples() -> str:
    """The Python of all docstrings of public names, and of all pages."""
    parser = doctest.DocTestParser()
    found = [example.source for name in NAMES for example in parser.get_examples(docstring(name))]
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found += [block.code for page in pages for block in blocks(page) if block.language == "python"]
    return "\n".join(found)
