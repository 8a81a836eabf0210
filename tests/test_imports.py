"""Imports point one way, and importing edge_llama costs little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edge_llama

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {"errors", "formats", "gguf", "gguf_checks", "images", "integrity", "artifact", "remembered", "vision"}
LEAVES |= {"gguf_parts", "gguf_text", "json_file", "manifest", "mmproj", "onnx_file", "onnx_text", "text_artifact"}
SOURCES = [path for package in ("edge_llama", "converters", "quant") for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names of our own modules that the file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.partition(".")[0] in ("edge_llama", "converters", "quant")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    for name in imported(path):
        package, _, rest = name.partition(".")
        module = rest.partition(".")[0]
        if parts[0] == "quant":
            assert package == "quant" or module in LEAVES, f"quant imports {name}"
        elif parts[0] == "converters":
            assert package in ("converters", "quant") or module in LEAVES, f"converters imports {name}"
        elif parts[:2] != ("edge_llama", "cli"):
            assert package == "edge_llama", f"the runtime imports {name}"
            assert module != "cli", f"{parts} imports the command line"
        if parts[0] == "edge_llama" and parts[-1] in LEAVES and len(parts) == 2:
            assert module in LEAVES, f"the leaf {parts[-1]} imports {name}"


def test_the_command_line_imports_the_converter_only_inside_a_verb() -> None:
    for path in sorted((ROOT / "edge_llama" / "cli").glob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            module = getattr(node, "module", None) or ""
            assert module.partition(".")[0] not in ("converters", "quant"), path


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
