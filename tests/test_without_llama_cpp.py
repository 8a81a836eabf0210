"""Where llama-cpp-python can't be built: conversions are the same byte for byte, and ONNX folders answer."""

import subprocess
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from sysconfig import get_path

import checkpoints
import pytest
from engines import CAPITAL
from ggufs import all_in

import converters
import edge_llama

ROOT = Path(__file__).resolve().parent.parent
Python = Callable[..., subprocess.CompletedProcess[str]]
KINDS = {"q4_k_m": ".gguf", "q8_0": ".gguf", "iq4_xs": ".gguf", "q2_k": ".gguf", "int4": "", "int8": ""}
"""Recipes, and how the output's name ends: a folder is for ONNX Runtime."""
COMMAND = "from edge_llama.cli import main; main()"


def environment(folder: Path, missing: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Python:
    """Runs code in an environment of its own: this one's packages but those whose names start with ``missing``."""
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for entry in Path(get_path("purelib")).iterdir():
        if entry.suffix != ".pth" and not entry.name.startswith(tuple(missing)):
            (site / entry.name).symlink_to(entry)
    (site / "edge_llama.pth").write_text(f"{ROOT}\n")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("EDGE_LLAMA_KERNELS", raising=False)

    def run(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [folder / "bin" / "python", "-c", code, *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Python:
    python = environment(tmp_path / "without", ["llama_cpp"], monkeypatch)
    code = "import importlib.util as u; print(u.find_spec('llama_cpp'), u.find_spec('quant').origin, sep=chr(10))"
    assert python(code).stdout.splitlines() == ["None", str(ROOT / "quant" / "__init__.py")]
    return python


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows are whole super-blocks: no format falls back."""
    shape = checkpoints.Shape(hidden=256, ffn=512, layers=2)
    return checkpoints.llama3(tmp_path_factory.mktemp("checkpoint") / "Llama-tiny", shape=shape, dtype="F32")


@pytest.fixture(scope="module")
def converted_here(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By recipe, as this environment converts it, by ggml's kernels."""
    folder = tmp_path_factory.mktemp("here")
    for kind, suffix in KINDS.items():
        converters.convert(checkpoint, folder / f"{kind}{suffix}", quant=kind, **({} if suffix else {"to": "onnx"}))
    return {kind: folder / f"{kind}{suffix}" for kind, suffix in KINDS.items()}


def contents(path: Path) -> dict[str, bytes]:
    """A file's bytes, or those of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line that names the package, nothing on stdout, no traceback."""
    assert done.returncode in (1, 2), done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_files_are_those_of_ggmls_kernels(
    without: Python, checkpoint: Path, converted_here: dict[str, Path], tmp_path: Path
) -> None:
    for kind, here in converted_here.items():
        there = tmp_path / here.name
        to = [] if here.suffix else ["--to", "onnx"]
        done = without(COMMAND, "convert", checkpoint, there, "--quant", kind, *to)
        assert done.returncode == 0, done.stderr
        assert ("tokenizer: not checked: llama-cpp-python is not installed" in done.stderr) == (not to)
        assert contents(there) == contents(here), kind


@pytest.mark.parametrize("verb", ["inspect", "verify"])
@pytest.mark.parametrize("kind", ["q4_k_m", "int4"])
def test_files_are_inspected_and_verified(
    without: Python, converted_here: dict[str, Path], kind: str, verb: str
) -> None:
    done = without(COMMAND, verb, converted_here[kind])
    assert done.returncode == 0, done.stderr


def test_a_quantized_source_is_dequantized_to_the_same_bytes(
    without: Python, converted_here: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("q4_k_m", "iq4_xs", "q2_k"):
        source = converted_here[name]
        converters.convert(source, tmp_path / "here.gguf", quant="f16", force=True)
        done = without(COMMAND, "convert", source, tmp_path / "there.gguf", "--quant", "f16", "--force")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "there.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()


def test_a_source_that_only_ggml_dequantizes_is_refused(
    without: Python, converted_here: dict[str, Path], tmp_path: Path
) -> None:
    source = all_in(converted_here["q8_0"], tmp_path / "iq2.gguf", "iq2_xxs")
    done = without(COMMAND, "convert", source, tmp_path / "out.gguf")
    assert_refused(done, str(source), "iq2_xxs", "llama-cpp-python is not installed", "pip install llama-cpp-python")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("weight", "words"),
    [("1e37", "near the ends of float32"), ("float('nan')", "infinite or NaN")],
    ids=["huge", "not finite"],
)
def test_weights_that_only_ggml_quantizes_are_refused(without: Python, weight: str, words: str) -> None:
    """Silently made otherwise, a file would depend on where it was converted."""
    code = f"""
import numpy as np
from edge_llama.errors import EngineError
from edge_llama.files.formats import F32, FORMATS
from quant import kernels
assert kernels.load(FORMATS["q4_0"])
rows = np.full((1, 32), {weight}, np.float32)
try:
    kernels.recode(rows.view(np.uint8), F32, FORMATS["q4_0"], check=False)
except EngineError as error:
    print(error)
"""
    done = without(code)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert "llama-cpp-python is not installed; pip install llama-cpp-python" in done.stdout


def test_ggml_can_not_be_demanded(
    without: Python, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LLAMA_KERNELS", "ggml")
    done = without(COMMAND, "convert", checkpoint, tmp_path / "out.gguf")
    assert_refused(done, "EDGE_LLAMA_KERNELS is ggml, but llama-cpp-python is not installed")


def test_without_numba_too_floats_are_converted_and_what_must_be_quantized_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = environment(tmp_path / "neither", ["llama_cpp", "numba"], monkeypatch)
    done = python(COMMAND, "convert", checkpoint, tmp_path / "q4_k_m.gguf")
    assert_refused(done, "takes llama-cpp-python or numba, and neither is installed", "pip install numba")
    done = python(COMMAND, "convert", checkpoint, tmp_path / "f16.gguf", "--quant", "f16")
    assert done.returncode == 0, done.stderr
    converters.convert(checkpoint, tmp_path / "here" / "f16.gguf", quant="f16")
    assert (tmp_path / "f16.gguf").read_bytes() == (tmp_path / "here" / "f16.gguf").read_bytes()


def test_devices_says_what_is_missing(without: Python) -> None:
    done = without(COMMAND, "devices")
    assert done.returncode == 1, done.stderr
    assert "llama-cpp-python is not installed" in done.stdout
    (kernels,) = (line for line in done.stdout.splitlines() if line.startswith("kernels  compiled for this machine ("))
    assert kernels.endswith("); llama-cpp-python is not installed")


def test_a_gguf_file_asks_for_the_package(without: Python, converted_here: dict[str, Path]) -> None:
    assert_refused(without(COMMAND, "run", converted_here["q8_0"], CAPITAL), "llama-cpp-python")


def test_an_onnx_folder_answers(without: Python, converted_here: dict[str, Path]) -> None:
    """As it does here, greedily: a random model's answer may be empty."""
    folder = converted_here["int4"]
    with edge_llama.open(folder) as model:
        expected = model.chat().send("Hello", temperature=0, max_tokens=12).result().text
    done = without(COMMAND, "run", folder, "Hello", "--temperature", "0", "--max-tokens", "12")
    assert (done.returncode, done.stdout.rstrip("\n")) == (0, expected.rstrip("\n")), done.stderr
    code = """
import sys, edge_llama
with edge_llama.open(sys.argv[1]) as model:
    chat = model.chat()
    print(repr(chat.send("Hello", temperature=0, max_tokens=12).result().text))
    assert chat.send("And now?", temperature=0, max_tokens=12).result().text is not None
assert "llama_cpp" not in sys.modules
"""
    done = without(code, folder)
    assert (done.returncode, done.stdout.strip()) == (0, repr(expected)), done.stderr
