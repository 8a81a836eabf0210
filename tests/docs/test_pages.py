"""All code of the README and of docs/ is run, page for page and in order, or says why not."""

import io
import json
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from page_code import OTHER_CODE, PAGES, ROOT, RUN, Block, Command, blocks, listed, name_of, on_page
from serving import serve

import edge_llama
from edge_llama.server.pool import Pool

FILES = {
    "docs/python.md": {"smollm2-q4_k_m.gguf": "converted"},
    "docs/run.md": {"smollm2-q4_k_m.gguf": "converted"},
    "docs/documents.md": {"story.md": "story"},
    "docs/fit.md": {"config.json": "config"},
    "docs/embeddings.md": {"bge-small-en-v1.5-f16.gguf": "bert", "sentences.txt": "sentences"},
    "docs/tools.md": {"model.gguf": "tool_llama", "tools.json": "described_tools"},
    "docs/structured.md": {"person.json": "person"},
}
"""What a page tells of as of a file that is there, and the fixture that has it, or stands in for it."""
MODELS = {"docs/tools.md": "tool_llama", "docs/cookbook/tools.md": "tool_llama", "docs/reference/README.md": ""}
"""Pages on which a model is open without being named, or stays open."""
SERVED = {
    "docs/server.md": ("127.0.0.1:8080", "smollm2.gguf"),
    "docs/remote.md": ("127.0.0.1:8000", "smollm2-q4_k_m.gguf"),
}
"""Pages on which a server was started: where it listens there (the test's has another port), and its model's file."""
CODE = [page for page in PAGES if any(block.language in RUN for block in blocks(page))]
_MEASURED = re.compile(r"\d[\d,.]*(?= (?:s|ms|MB/s|tokens/s)\b)")
"""Numbers that another machine, or another run, has otherwise."""
_SECONDS = 240
Rewrite = Callable[[str], str]


@pytest.mark.parametrize("page", CODE, ids=name_of)
def test_code_of_a_page_is_run(
    page: Path, request: pytest.FixtureRequest, clone: Path, around: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LLAMA_MODEL", around["EDGE_LLAMA_MODEL"])
    names: dict[str, Any] = {"__name__": "page", "edge_llama": edge_llama}
    with prepared(name_of(page), names, request) as rewrite:
        printed = None
        for block in blocks(page):
            if block.language == "text" and printed is not None:
                check_printed(block.code, printed, f"{name_of(page)}:{block.line}")
            printed = None
            if block.language not in RUN or block.why("not run") is not None:
                continue
            if block.language == "python":
                printed = run_python(block, rewrite(block.code), names)
            else:
                for command in block.commands():
                    run_command(block, command, rewrite(command.text), around)


@contextmanager
def prepared(page: str, names: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Rewrite]:
    """Have what the page stands on: its files, ``model`` among its names, its server; what its code becomes here."""
    for name, fixture in FILES.get(page, {}).items():
        request.getfixturevalue("put")(name, request.getfixturevalue(fixture))
    with ExitStack() as stack:
        if fixture := MODELS.get(page, ""):
            names["model"] = stack.enter_context(edge_llama.open(request.getfixturevalue(fixture)))
        if page not in SERVED:
            yield lambda text: text
        else:
            address, file = SERVED[page]
            url = stack.enter_context(serving(file, request.getfixturevalue("converted")))
            yield lambda text: text.replace(address, url)
        if page in MODELS:
            names["model"].close()


@contextmanager
def serving(file: str, model: Path) -> Iterator[str]:
    """A server with the model, under the name that its file has on a page; its host and port."""
    link = Path.cwd() / "served" / file
    link.parent.mkdir()
    link.symlink_to(model)
    with serve(Pool([str(link)], {"n_ctx": 2048}, isolate=False)) as served:
        yield served.url.removeprefix("http://")


@pytest.fixture
def config() -> Path:
    """The config.json of Llama 3.1 8B."""
    return ROOT / "tests" / "data" / "configs" / "llama-3.1-8b.json"


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """What the page shows of the file by its own ``cat``."""
    return as_shown("documents.md", tmp_path / "story.md")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("How tall is Everest?\nEverest rises 8,849 m.\n")
    return path


@pytest.fixture
def person(tmp_path: Path) -> Path:
    """What the page shows of the file by its own ``cat``."""
    return as_shown("structured.md", tmp_path / "person.json")


def as_shown(page: str, path: Path) -> Path:
    """The file that a page shows by ``cat``."""
    commands = (command for block in blocks(ROOT / "docs" / page) for command in block.commands())
    path.write_text(next(command.printed for command in commands if command.text == f"cat {path.name}") + "\n")
    return path


@pytest.fixture
def described_tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    path.write_text(json.dumps([{"type": "function", "function": {"name": "weather", "parameters": parameters}}]))
    return path


def run_python(block: Block, code: str, names: dict[str, Any]) -> str:
    """Run a block after those above it on its page; what it prints. Its lines are the page's in a traceback."""
    printed = io.StringIO()
    compiled = compile("\n" * (block.line - 1) + code, name_of(block.page), "exec")
    with redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compiled, names)
    return printed.getvalue()


def run_command(block: Block, command: Command, text: str, around: dict[str, str]) -> None:
    """Run a line of a console, unless it says that it isn't; it fails, and prints, as the page has it."""
    if block.why("not run", command.text) is not None:
        return
    where = f"{name_of(block.page)}:{command.line}"
    done = subprocess.run(
        ["bash", "-c", text],
        env=around,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    is_refused = command.printed.rpartition("\n")[2].startswith("edge-llama: ")
    assert (done.returncode != 0) == is_refused, f"{where}: {text}\n{done.stdout}"
    if command.printed and block.why("output varies", command.text) is None:  # a page may leave it out
        check_printed(command.printed, done.stdout, where)


def check_printed(expected: str, printed: str, where: str) -> None:
    """The same but for what is measured; ``…`` and ``...`` stand for anything."""
    wanted, got = (_MEASURED.sub("#", _trimmed(text)) for text in (expected, printed))
    pattern = ".*".join(re.escape(part) for part in re.split(r"…|\.\.\.", wanted))
    assert re.fullmatch(pattern, got, re.DOTALL), f"{where}: prints\n{printed}\nwhere the page has\n{expected}"


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def test_what_is_not_run_says_why() -> None:
    """Code in other languages, and consoles in which someone types: no command line stands there."""
    found = [(page, block) for page in PAGES for block in blocks(page) if block.why("not run") is None]
    assert [f"{name_of(page)}:{block.line}" for page, block in found if is_other(block)] == []


def is_other(block: Block) -> bool:
    """Whether a block is code that could not be run here."""
    return block.language in OTHER_CODE or (block.language == "console" and not list(block.commands()))


def test_what_is_not_run_is_listed() -> None:
    assert on_page() == listed()  # else PYTHONPATH=.:tests python tests/page_code.py
