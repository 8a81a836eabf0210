#!/usr/bin/env python3
"""Make a virtual environment with edge-llama in it, and prove that its llama.cpp works on this processor.

usage: install.py VENV EXTRAS          for example: install.py .venv convert,demo

llama.cpp is compiled for the very processor that is here, which is fastest, and trusted only after it has decoded
tokens in a child process; where it could not, the next variant is compiled. Wheels are kept in the user's cache
folder under all that they depend on, and with them which variant failed: another clone compiles nothing.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine_source import ENGINE, ROOT, cache_folder, fetch
from followed import Progress, clock, follow

# gcc fuses products and sums unasked where the processor can, as every ARM64: that rounds once instead of twice, and
# the same checkpoint would give other quantized bytes on other processors.
NO_FUSING = "-ffp-contract=off"
# Some virtual machines announce AMX and fault on its first instruction.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
PROOF = """
import sys
from edge_llama.backends.llama_cpp import build_probe
from edge_llama.errors import EngineError
try:
    build_probe.check()
except EngineError as error:
    sys.exit(error.message)  # the remedy is what happens next
"""
USUAL = ("a minute", "several minutes: PyTorch is among it")
"""How long it takes to install the extras that people use, and those of tests; as the network is."""
COMPILING = "3 to 7 minutes on two cores"
# What else a compiler and CMake take from the environment.
BUILD_VARIABLES = (
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "LDFLAGS",
    "CMAKE_ARGS",
    "CMAKE_GENERATOR",
    "CMAKE_TOOLCHAIN_FILE",
)


@dataclass(frozen=True)
class Variant:
    """A way to compile llama.cpp."""

    name: str
    flags: str
    """For the compilers of C and C++, after the user's own."""


def main() -> None:
    folder, extras = Path(sys.argv[1]), sys.argv[2]
    if sys.version_info < (3, 11):  # noqa: UP036 - said here before pip says it less kindly
        sys.exit(f"edge-llama needs Python 3.11 or newer, not {platform.python_version()}: try make PYTHON=python3.12")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not has_pip(python):  # none yet, half-made, or its Python is gone
        print(f"making {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
    wanted = requirement()
    if has(python, wanted):
        install(python, extras)
        if not fault(python):
            print("llama.cpp works on this processor", flush=True)
            return
        print("llama.cpp does not run on this processor as it was built: looking for another build", flush=True)

    def try_out(wheel: Path) -> str:
        pip(python, "install", "--force-reinstall", "--no-deps", str(wheel))
        install(python, extras)
        return fault(python)

    print("what follows is done once for this folder; later starts take a second", flush=True)
    source = fetch(python, wanted)
    chosen = first_that_works([CachedWheel(python, source, variant) for variant in variants()], try_out)
    print(f"llama.cpp works on this processor: built {chosen.variant.name}", flush=True)


def install(python: Path, extras: str) -> None:
    """edge-llama from here, and what it needs."""
    print(f"installing edge-llama[{extras}] and what it needs: {USUAL[extras == 'dev']}", flush=True)
    pip(python, "install", "-e", f"{ROOT}[{extras}]", label="installing")


def requirement() -> str:
    """What pyproject.toml asks of llama-cpp-python."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    return next(str(each) for each in wanted if each.startswith(ENGINE))


def variants(machine: str = platform.machine(), system: str = os.name) -> Sequence[Variant]:
    """The ways to compile for this processor, the fastest first."""
    if system == "nt":  # another compiler: MSVC fuses nothing unasked since 17.0 (its /fp:contract)
        return (Variant("natively", ""),)
    if machine.lower() in ("x86_64", "amd64"):
        return (Variant("natively", NO_FUSING), Variant("without AMX", f"{NO_FUSING} {NO_AMX}"))
    return (Variant("natively", NO_FUSING),)


def first_that_works(wheels: "Sequence[CachedWheel]", try_out: Callable[[Path], str]) -> "CachedWheel":
    """Try one after the other; ``try_out`` installs a wheel and says what is wrong with it, or ''."""
    for each in wheels:
        if wrong := each.known_fault():
            print(f"llama.cpp built {each.variant.name}, tried before: {wrong}", flush=True)
            continue
        if not (wrong := try_out(each.wheel())):
            return each
        print(f"llama.cpp built {each.variant.name}: {wrong}", flush=True)
        each.reject(wrong)
    sys.exit(
        "llama.cpp does not run on this processor; the messages above say how it failed. What was tried is kept in "
        f"{cache_folder() / 'wheels'}: delete it to try again"
    )


class CachedWheel:
    """A variant's wheel in the user's cache folder, in a folder named after all that the wheel depends on."""

    def __init__(self, python: Path, source: Path, variant: Variant) -> None:
        self._python, self._source, self.variant = python, source, variant
        self._key = {
            "source": source.name,
            "flags": variant.flags,
            "environment": {name: os.environ[name] for name in BUILD_VARIABLES if os.environ.get(name)},
            "python": sys.implementation.cache_tag,
            "platform": [sysconfig.get_platform(), *platform.libc_ver()],
            "processor": processor(),
        }
        digest = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()
        self.folder = cache_folder() / "wheels" / digest[:24]

    def known_fault(self) -> str:
        """How this variant died here before, or ''."""
        note = self.folder / "failed.txt"
        return note.read_text("utf-8") if note.is_file() else ""

    def wheel(self) -> Path:
        """The wheel, built now if it isn't there; complete or not there at all."""
        if kept := sorted(self.folder.glob("*.whl")):
            return kept[0]
        print(f"compiling llama.cpp {self.variant.name}, once on this machine: {COMPILING}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(json.dumps(self._key, indent=1), "utf-8")
        environment = with_flags(os.environ, self.variant.flags)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            # pip's own cache is asked by the source's name alone: it would give a wheel of other flags.
            arguments = ("--no-deps", "--no-cache-dir", "-w", folder, str(self._source))
            log = self.folder / "build.log"
            pip(self._python, "wheel", "-v", *arguments, label="compiling", usual=COMPILING, env=environment, log=log)
            (built,) = Path(folder).iterdir()
            log.unlink(missing_ok=True)
            return built.replace(self.folder / built.name)

    def reject(self, wrong: str) -> None:
        """Remember a build that kills its process; one that failed otherwise, as for want of time, is tried again."""
        for wheel in self.folder.glob("*.whl"):
            wheel.unlink()
        if "died of signal" in wrong:
            (self.folder / "failed.txt").write_text(wrong, "utf-8")


def with_flags(environment: Mapping[str, str], flags: str) -> dict[str, str]:
    added = {name: f"{environment.get(name, '')} {flags}".strip() for name in ("CFLAGS", "CXXFLAGS")} if flags else {}
    return {**environment, **added}


def processor() -> list[str]:
    """Its name and instruction set extensions, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return [platform.processor(), platform.machine()]
    first: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    told = ("model name", "CPU implementer", "CPU part", "flags", "Features")  # x86, ARM
    return [platform.machine(), *(first[key] for key in told if key in first)]


def has_pip(python: Path) -> bool:
    try:
        return subprocess.run([str(python), "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def has(python: Path, wanted: str) -> bool:
    """Whether the environment fulfils a requirement: pip, with nowhere to look for it, is content."""
    nowhere = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    options = ["--isolated", "install", "--dry-run", "--no-index", "--no-deps", wanted]
    return (
        subprocess.run([str(python), "-m", "pip", *options], env=nowhere, check=False, capture_output=True).returncode
        == 0
    )


def pip(
    python: Path,
    verb: str,
    *arguments: str,
    label: str = "",
    usual: str = "",
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> None:
    """Have pip do its work, and tell how far it is; silently without a ``label``."""
    command = [str(python), "-m", "pip", verb, "--disable-pip-version-check", *arguments]
    began = time.monotonic()
    code = follow(command, Progress(label or verb, usual), env=env, log=log)
    if code:
        sys.exit(f"pip failed with {code}; the messages above say why")
    if label:
        print(f"{label}: done in {clock(time.monotonic() - began)}", flush=True)


def fault(python: Path) -> str:
    """What is wrong with the installed llama.cpp on this processor, or ''; in a child, which it may kill."""
    child = subprocess.run([str(python), "-c", PROOF], check=False, capture_output=True, text=True)
    if not child.returncode:
        return ""
    return (child.stderr.strip().splitlines() or [f"ended with {child.returncode}"])[-1]


if __name__ == "__main__":
    main()
