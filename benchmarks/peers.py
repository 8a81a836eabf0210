"""llama.cpp's own converter, quantizer and programs, of the installed llama-cpp-python; other peers' environments.

Needs the ``dev`` extra, and for the programs cmake and a compiler. What is built or installed is kept in ``.cache``.
"""

import hashlib
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import venv
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
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
    """A program of llama.cpp (``llama-bench``, ``llama-server``, ...), built once from the same source."""
    source, build = unpacked(version(ENGINE)), CACHE / f"llama-programs-{version(ENGINE)}"
    built = build / "bin" / name
    if not built.is_file():
        environment = dict(os.environ)
        if platform.machine().lower() in ("x86_64", "amd64"):  # runs wherever scripts/install.py's do
            environment["CFLAGS"] = environment["CXXFLAGS"] = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
        off = ["LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP"]
        off += ["LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI"]  # the server's page would be downloaded
        flags = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON"]
        flags += [f"-D{option}=OFF" for option in off]
        for command in (
            ["cmake", "-S", source, "-B", build, *flags],
            ["nice", "cmake", "--build", build, "--target", name, "--parallel", "2"],
        ):
            subprocess.run(list(map(str, command)), env=environment, stdout=sys.stderr, check=True)
    return built


def program_environment() -> dict[str, str]:
    """Makes a program load the libraries of the installed llama-cpp-python: the same engine, byte for byte."""
    spec = find_spec("llama_cpp")
    assert spec
    assert spec.origin
    libraries = [Path(spec.origin).parent / "lib", program("llama-bench").parent]
    return {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}


def example_server() -> Path:
    """llama-cpp-python's own example of a server, a file of its source distribution."""
    return unpacked(version(ENGINE)).parents[1] / "examples" / "server" / "server.py"


@cache
def environment(name: str, *requirements: str) -> Path:
    """The Python of an environment that has these packages, of exact versions: they stay out of this one."""
    digest = hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:8]
    folder = CACHE / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        subprocess.run(list(map(str, install)), stdout=sys.stderr, check=True)
        (folder / "installed").touch()
    return python


def packages_of(python: Path) -> Path:
    """Where the packages of such an environment lie: another Python of the same version can import them too."""
    return next(python.parent.parent.glob("lib/python*/site-packages"))


@cache
def at_commit(commit: str) -> Path:
    """The files of this repository as they were at a commit."""
    folder = CACHE / f"edge-llama-{commit}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=CACHE) as partial:
            archive = Path(partial) / "files.tar"
            subprocess.run(["git", "-C", str(ROOT), "archive", "-o", str(archive), commit], check=True)
            with tarfile.open(archive) as opened:
                opened.extractall(Path(partial) / "files", filter="data")
            (Path(partial) / "files").rename(folder)
    return folder
