"""``edge_llama.convert``: the one function with which an application converts."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_type_hints

import checkpoints
import pytest

import edge_llama
from converters.options import Options
from edge_llama import OptionError, OutputError
from edge_llama.convert import ConvertOptions, convert, plan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama3(tmp_path_factory.mktemp("source") / "Llama-3-tiny")


def test_an_application_plans_converts_and_opens(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny.gguf"
    planned = plan(source, output, quant="q8_0", tensor_types={"attn_v": "f16"})
    assert not output.exists()
    seen: list[tuple[int, int]] = []
    done = convert(
        source,
        output,
        threads=1,
        on_progress=lambda *at: seen.append(at),
        quant="q8_0",
        tensor_types={"attn_v": "f16"},
    )
    assert done.output == output
    assert done.plan == planned
    assert done.resumed_bytes == 0
    assert planned.output_bytes == output.stat().st_size
    assert seen[-1] == (planned.source_bytes, planned.source_bytes)
    stored = {tensor.name: (tensor.source_format, tensor.format) for tensor in planned.tensors}
    assert stored["blk.0.attn_v.weight"] == ("bf16", "f16")
    assert stored["blk.0.attn_q.weight"] == ("bf16", "q8_0")
    with edge_llama.open(output, n_ctx=64) as model:
        assert model.generate("Hello", temperature=0, max_tokens=2).result().tokens


def test_an_output_is_replaced_only_if_asked(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "tiny.gguf", quant="f16")
    with pytest.raises(OutputError, match="already exists"):
        convert(source, tmp_path / "tiny.gguf", quant="q8_0")
    assert convert(source, tmp_path / "tiny.gguf", quant="q8_0", force=True).plan.quant == "q8_0"


def test_an_option_stands_in_both_lists() -> None:
    assert get_type_hints(ConvertOptions) == get_type_hints(Options)


PROGRAM = """\
from edge_llama.convert import ConvertOptions, convert
convert("a", "b.gguf", quant="q8_0", to="gguf", block=64, force=True)
convert("a", "b.gguf", **ConvertOptions(lora="adapter"))
convert("a", "b.gguf", quantt="q8_0")
convert("a", "b.gguf", block="64")
"""


def test_mypy_knows_the_options(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "program.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("program.py")]
    assert [line.split(":")[1] for line in found if ": error: " in line] == ["4", "5"], done.stdout + done.stderr
    assert 'Unexpected keyword argument "quantt"' in done.stdout
    assert 'Argument "block" to "convert" has incompatible type "str"' in done.stdout


@pytest.mark.parametrize(("missing", "output", "told"), [
    ("converters", "x.gguf", "converting needs the package converters"),
    ("onnx_ir", "folder", "writing ONNX needs the package onnx-ir"),
])  # fmt: skip
def test_what_is_not_installed_is_named(missing: str, output: str, told: str, source: Path, tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.modules[{missing!r}] = None
        from edge_llama import OptionError
        from edge_llama.convert import convert
        try:
            convert({str(source)!r}, {str(tmp_path / output)!r}, to={"onnx" if output == "folder" else None!r})
        except OptionError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert told in done.stdout
    assert 'pip install "edge-llama[convert]"' in done.stdout
    assert not list(tmp_path.iterdir())


def test_importing_it_loads_no_converter() -> None:
    code = "import sys, edge_llama.convert; print({'converters', 'quant', 'numba', 'onnx_ir'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_bad_option_is_a_typed_error_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--quant q9: not for gguf"):
        convert(source, tmp_path / "x.gguf", quant="q9")
    assert not list(tmp_path.iterdir())
