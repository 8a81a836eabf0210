"""Imports point one way, and importing edge_llama costs little."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import edge_llama

ROOT = Path(__file__).resolve().parent.parent
LAYERS = """
edge_llama.errors
edge_llama.host
edge_llama.files
edge_llama.fidelity
| quant.reference
| quant.compiled
| quant
| converters.facts   converters.options   converters.times
| converters.metadata   converters.evidence.given
| converters.checkpoint
| converters.layout   converters.folder_files   converters.tokenizers
| converters.evidence.notes
| converters.tensors   converters.output   converters.target
| converters.architectures
| converters.sources   converters.targets.onnx
| converters.transforms   converters.evidence
| converters.targets
| converters
edge_llama.media
edge_llama.prompts
edge_llama.retrieval
edge_llama.sampling
edge_llama.backends
edge_llama.backends.llama_cpp   edge_llama.backends.onnxruntime   edge_llama.backends.remote
edge_llama.planning
edge_llama.runtime
edge_llama.generation
edge_llama.chat
edge_llama.model
edge_llama.isolation   edge_llama.remote
edge_llama.opening
edge_llama
edge_llama.certifying
edge_llama.history   edge_llama.convert   edge_llama.compile   edge_llama.fit
edge_llama.server   edge_llama.llm_plugin
edge_llama.cli.terminal
edge_llama.cli.chat_session
edge_llama.cli   edge_llama.__pyinstaller
edge_llama.__main__
"""
"""The rooms, the lowest first: each imports only rooms above it in this list. Rooms in one line don't know each other,
and what is marked | is known to no room below it but those marked so, ``convert`` and ``cli``."""
LINES = [line for line in LAYERS.splitlines() if line]
LEVELS = {room: at for at, line in enumerate(LINES) for room in line.strip("| ").split()}
CONVERSION = {room for line in LINES if line.startswith("|") for room in line.strip("| ").split()}
BOTH_HALVES = {"edge_llama.certifying", "edge_llama.convert", "edge_llama.cli"}
SOURCES = [path for package in ("edge_llama", "converters", "quant") for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    """The dotted name of the module in a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


def room_of(module: str) -> str:
    """The room that a module is in: itself, or the nearest package that is one."""
    return next(room for room in _upwards(module) if room in LEVELS)


def _upwards(module: str) -> Iterator[str]:
    while module:
        yield module
        module = module.rpartition(".")[0]


@cache
def imported(module: str) -> frozenset[str]:
    """Our own modules that a module imports, wherever in it: within functions and for type checking too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{module} imports relatively"
            names |= {
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
    return frozenset(name for name in names if name in MODULES and name != module)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    room = room_of(module)
    for name in imported(module):
        other = room_of(name)
        if other == room:
            continue
        assert LEVELS[other] < LEVELS[room], f"{module} ({room}) imports {name} ({other})"
        if other in CONVERSION:
            assert room in CONVERSION | BOTH_HALVES, f"{module}, of the runtime, imports {name}"
        if room in CONVERSION:
            assert other in CONVERSION or LEVELS[other] < min(map(LEVELS.__getitem__, CONVERSION)), f"{module}: {name}"


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({module: imported(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1][::-1]))


def test_every_room_is_there() -> None:
    assert set(LEVELS) <= set(MODULES)
    packages = {name_of(path) for path in SOURCES if path.name == "__init__.py"}
    assert {package for package in packages if package.count(".") == 1 and package.startswith("edge_llama.")} <= set(
        LEVELS
    )


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room_of(name) in BOTH_HALVES))
def test_the_converter_is_imported_only_inside_a_function(module: str) -> None:
    for node in ast.parse(MODULES[module].read_text("utf-8")).body:
        imports = node.names if isinstance(node, ast.Import) else []
        names = [alias.name for alias in imports] + [getattr(node, "module", None) or ""]
        assert not {name.partition(".")[0] for name in names} & {"converters", "quant"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_edge_llama_loads_nothing_heavy_and_no_native_engine() -> None:
    loaded = set(run("import sys, edge_llama; print(*sys.modules)").split())
    heavy = {
        "llama_cpp",
        "jinja2",
        "typer",
        "rich",
        "prompt_toolkit",
        "sentencepiece",
        "tokenizers",
        "onnxruntime",
        "converters",
        "quant",
        "asyncio",
        "httpx",
        "llguidance",
        "PIL",
        "av",
    }
    assert not loaded & heavy


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's map of libraries, which Linux has")
def test_importing_edge_llama_maps_no_engine_library() -> None:
    maps = run("import edge_llama; print(open('/proc/self/maps').read())")
    assert "ggml" not in maps
    assert "libllama" not in maps


def test_all_names_what_the_module_offers() -> None:
    public = {name for name in vars(edge_llama) if not name.startswith("_")}
    modules = {path.stem for path in (ROOT / "edge_llama").iterdir()}
    assert public - modules | {"open"} == set(edge_llama.__all__)
    assert edge_llama.__all__ == sorted(edge_llama.__all__)
