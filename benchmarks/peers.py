"""llama.cpp's own converter, quantizer and programs, of the installed llama-cpp-python. Needs the ``dev`` extra."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from engine_source import ENGINE, unpacked

_CONVERT = """
import runpy, sys
source, pre = sys.argv[1], sys.argv[2]
sys.path[:0] = [source, source + "/gguf-py"]
if pre:
    from conversion.base import TextModel
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[3:]]
runpy.run_path(source + "/convert_hf_to_gguf.py", run_name="__main__")
"""
_QUANTIZE = """
import ctypes, sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), int(sys.argv[4])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""


def convert_command(checkpoint: Path, output: Path, outtype: str, pre: str = "") -> list[str]:
    """llama.cpp's converter; ``pre`` tells it the tokenizer's name where it can't know it."""
    source = unpacked(version(ENGINE))
    command = [sys.executable, "-c", _CONVERT, source, pre, checkpoint, "--outfile", output, "--outtype", outtype]
    return list(map(str, command))


def quantize_command(source: Path, output: Path, ftype: int, threads: int) -> list[str]:
    """llama.cpp's quantizer, which writes what its program ``llama-quantize`` writes."""
    return [sys.executable, "-c", _QUANTIZE, str(source), str(output), str(ftype), str(threads)]


def converted_by_llama_cpp(checkpoint: Path, output: Path, outtype: str, pre: str) -> Path:
    done = subprocess.run(
        convert_command(checkpoint, output, outtype, pre), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"llama.cpp's converter failed on {checkpoint}:\n{done.stderr[-2000:]}")
    return output


@cache
def program(name: str) -> Path:
    """A program of llama.cpp (``llama-bench``, ``llama-mtmd-cli``), built once from the same source."""
    source, build = unpacked(version(ENGINE)), ROOT / ".cache" / f"llama-bench-{version(ENGINE)}"
    built = build / "bin" / name
    if not built.is_file():
        environment = dict(os.environ)
        if platform.machine().lower() in ("x86_64", "amd64"):  # runs wherever scripts/install.py's do
            environment["CFLAGS"] = environment["CXXFLAGS"] = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
        off = ["LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER"]
        flags = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON"]
        flags += [f"-D{option}=OFF" for option in off]
        for command in (
            ["cmake", "-S", source, "-B", build, *flags],
            ["nice", "cmake", "--build", build, "--target", name, "--parallel", "2"],
        ):
            subprocess.run(list(map(str, command)), env=environment, check=True)
    return built


def program_environment() -> dict[str, str]:
    """Makes a program load the libraries of the installed llama-cpp-python: the same engine, byte for byte."""
    spec = find_spec("llama_cpp")
    assert spec
    assert spec.origin
    libraries = [Path(spec.origin).parent / "lib", program("llama-bench").parent]
    return {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
