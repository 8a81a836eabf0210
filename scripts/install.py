#!/usr/bin/env python3
"""Make a virtual environment with edge-llama in it, and prove that its llama.cpp works on this processor.

usage: install.py VENV EXTRAS          for example: install.py .venv convert,demo

pip keeps wheels that it built, and one built elsewhere or without our flags may be found again: a build is trusted
only after it has decoded tokens in a child process, and is made anew if it could not.
"""

import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Some virtual machines announce AMX and fault on its first instruction.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def main() -> None:
    folder, extras = Path(sys.argv[1]), sys.argv[2]
    if sys.version_info < (3, 11):  # noqa: UP036 - said here before pip says it less kindly
        sys.exit(f"edge-llama needs Python 3.11 or newer, not {platform.python_version()}: try make PYTHON=python3.12")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not has_pip(python):  # none yet, half-made, or its Python is gone
        print(f"making {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
    print(
        f"installing edge-llama[{extras}]; llama.cpp is compiled the first time, which takes 3 to 7 minutes", flush=True
    )
    pip(python, "-e", f"{ROOT}[{extras}]")
    if not works(python):
        print("llama.cpp does not run on this processor as it was built: building it again", flush=True)
        engine = "llama-cpp-python"
        version = output_of(python, f"from importlib.metadata import version; print(version('{engine}'))")
        wanted = f"{engine}=={version.strip()}"
        pip(python, "--no-cache-dir", "--force-reinstall", "--no-deps", "--no-binary", engine, wanted)
        if not works(python):
            sys.exit("llama.cpp does not run on this processor; the messages above say how it failed")
    print("llama.cpp works on this processor", flush=True)


def has_pip(python: Path) -> bool:
    try:
        return subprocess.run([str(python), "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def output_of(python: Path, code: str) -> str:
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout


def pip(python: Path, *arguments: str) -> None:
    environment = dict(os.environ)
    if platform.machine().lower() in ("x86_64", "amd64") and os.name != "nt":
        for flags in ("CFLAGS", "CXXFLAGS"):
            environment[flags] = f"{environment.get(flags, '')} {NO_AMX}".strip()
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit("pip failed; the messages above say why")


def works(python: Path) -> bool:
    proof = "from edge_llama.backends.llama_cpp import build_probe; build_probe.check()"
    child = subprocess.run([str(python), "-c", proof], check=False, capture_output=True, text=True)
    print("".join(child.stderr.splitlines(keepends=True)[-1:]), end="", flush=True)
    return child.returncode == 0


if __name__ == "__main__":
    main()
