"""llama.cpp's own converters, of the installed llama-cpp-python's source: the reference for whole float files."""

import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from engine_source import ENGINE, unpacked

_CONVERT = """
import json, runpy, sys
source = sys.argv[1]
sys.path[:0] = [source, source + "/gguf-py"]
from conversion.base import TextModel
known = TextModel.get_vocab_base_pre
for checkpoint, output, pre in json.load(sys.stdin):
    TextModel.get_vocab_base_pre = (lambda self, tokenizer, pre=pre: pre) if pre else known
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", output, "--outtype", "f32"]
    runpy.run_path(source + "/convert_hf_to_gguf.py", run_name="__main__")
"""

_ADAPTERS = """
import json, runpy, sys
source = sys.argv[1]
sys.path[:0] = [source, source + "/gguf-py"]
for base, adapter, output, outtype in json.load(sys.stdin):
    options = ["--base", base, "--outfile", output, "--outtype", outtype]
    sys.argv = ["convert_lora_to_gguf.py", *options, adapter]
    runpy.run_path(source + "/convert_lora_to_gguf.py", run_name="__main__")
"""


def converted_by_llama_cpp(jobs: Iterable[tuple[Path, Path, str]]) -> None:
    """Each checkpoint to a float32 GGUF file; the third is a byte-level tokenizer's name, known by a hash otherwise."""
    asked = json.dumps([(str(checkpoint), str(output), pre) for checkpoint, output, pre in jobs])
    _run(_CONVERT, asked)


def adapters_by_llama_cpp(jobs: Iterable[tuple[Path, Path, Path, str]]) -> None:
    """Each base's adapter to a GGUF file in a format: base, adapter, output, f32 | f16 | bf16 | q8_0."""
    _run(_ADAPTERS, json.dumps([[*map(str, job)] for job in jobs]))


def _run(program: str, asked: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", program, str(unpacked(version(ENGINE)))]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
