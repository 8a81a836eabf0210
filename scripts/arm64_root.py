#!/usr/bin/env python3
"""A Debian of ARM64 on an x86-64 machine, run by qemu's user mode, with edge-llama's packages in it: for `arm64.py`.

It is set up once, in 10 to 15 minutes, as root, and kept in the user's cache folder (2 GB). Nothing of it is emulated
but what runs in it: packages are downloaded as wheels of ARM64, and llama.cpp is compiled by a cross-compiler.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution, requires, version
from pathlib import Path

from engine_source import ENGINE, ROOT, fetch
from install import NO_FUSING

APT = {
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
    "mmdebstrap": "mmdebstrap",
    "arch-test": "arch-test",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
}
"""Commands, and Debian's packages that have them."""
DEBIAN, PYTHON = "bookworm", "3.11"
ARCHITECTURES = {
    "armv8-a": ("armv8-a", "asimd"),
    "dotprod": ("armv8.2-a+fp16+dotprod", "asimd asimddp asimdhp fphp"),
    "i8mm": ("armv8.2-a+fp16+dotprod+i8mm", "asimd asimddp asimdhp fphp i8mm"),
}
"""What llama.cpp is compiled for (gcc's ``-march``), and the features by which a kernel tells of such a processor."""
TOOLCHAIN = """
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
"""
# /proc is the machine's own, where /proc/cpuinfo tells of another processor: libraries that read it would be misled.
# /sys is left out: with it onnxruntime dies of what it finds there. In a namespace of its own nothing stays mounted.
ENTER = """
set -e
root=$1 folder=$2 source=$3 engine=$4
shift 4
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$folder/cpuinfo" "$root/proc/cpuinfo"
mount --bind "$folder/work" "$root/shared"
mount --bind -o ro "$folder/site" "$root/site"
mount --bind -o ro "$engine" "$root/engine"
mount --bind -o ro "$source" "$root/source"
exec chroot "$root" /usr/bin/env -i -C /shared "$@"
"""
CORE = """processor\t: {number}
BogoMIPS\t: 50.00
Features\t: fp {features} cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd49
CPU revision\t: 0

"""
PROCESSOR = "Arm Neoverse-N2"
"""What the made-up ``/proc/cpuinfo`` tells of."""


@dataclass(frozen=True)
class Emulated:
    """The set-up system: ``folder`` has its ``root``, ``site`` (packages), and ``work``, which both sides share."""

    folder: Path
    engine: Path
    """llama-cpp-python, unpacked."""

    @property
    def work(self) -> Path:
        """What both sides see: ``/shared`` there."""
        return self.folder / "work"

    def command(self, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """Runs Python with ``arguments`` there, in ``/shared``; for subprocess."""
        variables = {
            "PATH": "/usr/bin:/bin",
            "HOME": "/shared/home",
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/source:/engine:/site",
            "EDGE_LLAMA_CACHE": "/shared/cache",
            **environment,
        }
        places = [self.folder / "root", self.folder, ROOT, self.engine]
        program = [*(f"{name}={value}" for name, value in variables.items()), "/usr/bin/python3", *arguments]
        return ["unshare", "--mount", "sh", "-c", ENTER, "sh", *map(str, places), *program]


def set_up(folder: Path, architecture: str) -> Emulated:
    """Whatever is not there yet; SystemExit where it can't be had."""
    if os.geteuid() or sys.platform != "linux":
        sys.exit("a root of another architecture takes Linux, and root: sudo make test-arm64")
    folder.mkdir(parents=True, exist_ok=True)
    _commands()
    _once(folder, "root", f"{DEBIAN} {PYTHON}", lambda: _debian(folder / "root"))
    wanted = _requirements()
    _once(folder, "site", "\n".join(wanted), lambda: _packages(folder / "site", wanted))
    _metadata(folder / "site")
    flags, features = ARCHITECTURES[architecture]
    engine = folder / f"engine-{architecture}"
    _once(folder, engine.name, f"{version(ENGINE)} {flags} {NO_FUSING}", lambda: _engine(folder, engine, flags))
    for name in ("home", "cache"):
        (folder / "work" / name).mkdir(parents=True, exist_ok=True)
    cores = (CORE.format(number=number, features=features) for number in range(os.cpu_count() or 1))
    (folder / "cpuinfo").write_text("".join(cores))
    return Emulated(folder, engine)


def _once(folder: Path, name: str, key: str, make: Callable[[], None]) -> None:
    """``make`` what ``key`` describes at ``folder / name``, unless it is there whole."""
    mark, digest = folder / f"{name}.done", hashlib.sha256(key.encode()).hexdigest()
    if mark.is_file() and mark.read_text() == digest:
        return
    print(f"setting up {name}", flush=True)
    mark.unlink(missing_ok=True)
    shutil.rmtree(folder / name, ignore_errors=True)
    make()
    mark.write_text(digest)


def _run(*command: str | Path, **environment: str) -> None:
    if code := subprocess.run(command, env=os.environ | environment, check=False).returncode:
        sys.exit(f"{command[0]} failed with {code}; the messages above say why")


def _commands() -> None:
    """Install what is missing, and have the kernel give ARM64's programs to qemu, in any root (binfmt's flag F)."""
    if missing := [package for command, package in APT.items() if not shutil.which(command)]:
        _run("apt-get", "install", "--yes", "--no-install-recommends", *missing)
    handlers = Path("/proc/sys/fs/binfmt_misc")
    if not (handlers / "register").exists():
        _run("mount", "-t", "binfmt_misc", "binfmt_misc", handlers)
    if not (handlers / "qemu-aarch64").exists():
        _run("update-binfmts", "--enable", "qemu-aarch64")


def _debian(root: Path) -> None:
    packages = "python3,libpython3-stdlib,libgomp1,ca-certificates"
    _run("mmdebstrap", "--mode=root", "--variant=minbase", "--arch=arm64", f"--include={packages}", DEBIAN, root)
    for name in ("shared", "site", "engine", "source"):
        (root / name).mkdir()


def _requirements() -> list[str]:
    """What pyproject.toml asks for running and converting: of llama.cpp, which is compiled here, what that asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["convert"], *(requires(ENGINE) or ())]
    return sorted(each for each in wanted if not each.startswith(ENGINE) and "extra ==" not in each)


def _packages(site: Path, wanted: Sequence[str]) -> None:
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)] + ["manylinux2014_aarch64"]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    abis = [word for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
    kind = ["--python-version", PYTHON, "--implementation", "cp", *abis, *platforms, "--only-binary=:all:"]
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--target", site, *kind, *wanted)


def _metadata(site: Path) -> None:
    """edge-llama itself is read where it lies; its version is asked of the installed distribution."""
    (folder,) = Path(str(distribution("edge-llama").locate_file(""))).glob("edge_llama-*.dist-info")
    shutil.copytree(folder, site / folder.name, dirs_exist_ok=True)


def _engine(folder: Path, engine: Path, flags: str) -> None:
    """llama-cpp-python, compiled here for there: 5 to 10 minutes."""
    tools = folder / "tools" / "bin" / "python"
    _once(folder, "tools", "1", lambda: venv.create(folder / "tools", with_pip=True))
    _run(tools, "-m", "pip", "install", "--quiet", "scikit-build-core[pyproject]", "cmake", "ninja")
    toolchain, wheels = folder / "aarch64.cmake", folder / "wheels"
    toolchain.write_text(TOOLCHAIN)
    shutil.rmtree(wheels, ignore_errors=True)
    options = f"-DCMAKE_TOOLCHAIN_FILE={toolchain} -DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH={flags}"
    environment = {
        "PATH": f"{tools.parent}{os.pathsep}{os.environ['PATH']}",
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",  # what the wheel is named after
        "CMAKE_ARGS": options,
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
        "CFLAGS": NO_FUSING,
        "CXXFLAGS": NO_FUSING,
    }
    source = fetch(Path(sys.executable), f"{ENGINE}=={version(ENGINE)}")
    alone = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", wheels]
    _run(tools, "-m", "pip", "wheel", "--quiet", *alone, source, **environment)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(engine)
