#!/usr/bin/env python3
"""llama.cpp on Vulkan, run by a driver that computes on the processor (Mesa's lavapipe): `make test-vulkan`.

usage: .venv/bin/python scripts/vulkan.py [device_check.py's options]

Builds llama-cpp-python with Vulkan into a folder of its own, kept in the user's cache folder (20 minutes the first
time), and with it in the place of the installed one runs the tests of the choice among devices, those that need a GPU,
and device_check.py --device vulkan. Debian's packages are installed if this runs as root.

Standard library only, but for what it starts.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from engine_source import ENGINE, ROOT, cache_folder, fetch
from install import NO_AMX, NO_FUSING, CachedWheel, Variant

PACKAGES = ("mesa-vulkan-drivers", "libvulkan-dev", "glslc", "spirv-headers")
NEWER = "trixie"
"""The Debian whose headers are new enough where the system's aren't: bookworm's (1.3.239) lack what llama.cpp uses."""
TESTS = (
    "tests/backends/llama_cpp/test_on_vulkan.py",
    "tests/backends/test_device_names.py",
    "tests/backends/llama_cpp/test_gpus.py",
    "tests/host/test_devices.py",
)


def main() -> None:
    install_packages()
    os.environ["CMAKE_ARGS"] = f"-DGGML_VULKAN=on -DVulkan_INCLUDE_DIR={headers()}"
    built = CachedWheel(Path(sys.executable), source(), Variant("for Vulkan", f"{NO_FUSING} {NO_AMX}")).wheel()
    environment = {**os.environ, **software_device(), "PYTHONPATH": search_path(installed(built))}
    for command in (["-m", "pytest", *TESTS], ["scripts/device_check.py", "--device", "vulkan", *sys.argv[1:]]):
        if code := subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False).returncode:
            sys.exit(code)


def install_packages() -> None:
    """The driver, the loader, the compiler of shaders; ends the program with what to do where it can't."""
    if shutil.which("glslc") and next(drivers(), None):
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
    if not shutil.which("apt-get") or os.geteuid():
        sys.exit(f"lavapipe, Vulkan's headers and glslc are needed; on Debian, as root: {' '.join(command)}")
    subprocess.run(command, check=True)


def drivers() -> Iterator[Path]:
    """The file by which Vulkan's loader knows lavapipe."""
    return Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json")


def software_device() -> dict[str, str]:
    """Variables that leave lavapipe alone to Vulkan, and let llama.cpp take it although it is no GPU."""
    driver = str(next(drivers()))
    return {
        "VK_DRIVER_FILES": driver,
        "VK_ICD_FILENAMES": driver,
        "GGML_VK_VISIBLE_DEVICES": "0",
        "EDGE_LLAMA_VULKAN": "1",
    }


def headers() -> Path:
    """Vulkan's headers: the system's, or a newer Debian's beside them."""
    system, newer = Path("/usr/include"), cache_folder() / "vulkan-headers" / "usr" / "include"
    if not knows_layers(system) and not knows_layers(newer):
        download_headers(newer.parent.parent)
    return system if knows_layers(system) else newer


def knows_layers(include: Path) -> bool:
    """Whether these headers have VK_EXT_layer_settings, without which ggml-vulkan.cpp doesn't compile."""
    file = include / "vulkan" / "vulkan_core.h"
    return file.is_file() and "VK_EXT_layer_settings" in file.read_text("utf-8")


def download_headers(folder: Path) -> None:
    """Unpack libvulkan-dev of a newer Debian, by package lists of our own: the system's stay as they are."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(f"deb {mirror()} {NEWER} main\n", "utf-8")
    options = [f"-oDir::Etc::SourceList={folder / 'sources.list'}", "-oDir::Etc::SourceParts=/dev/null"]
    options += [f"-oDir::State::Lists={lists}"]
    subprocess.run(["apt-get", *options, "update"], check=True)
    subprocess.run(["apt-get", *options, "download", "libvulkan-dev"], cwd=folder, check=True)
    (package,) = folder.glob("libvulkan-dev_*.deb")
    subprocess.run(["dpkg", "-x", package, folder], check=True)


def mirror() -> str:
    """Where this Debian has its packages from."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian", "Created-By: Packages"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return next((url for url in found if "security" not in url), "http://deb.debian.org/debian/")


def source() -> Path:
    """The archive of the installed version, from the cache folder or the package index."""
    kept = cache_folder() / "sources" / f"llama_cpp_python-{version(ENGINE)}.tar.gz"
    return kept if kept.is_file() else fetch(Path(sys.executable), f"{ENGINE}=={version(ENGINE)}")


def installed(wheel: Path) -> Path:
    """The wheel's files in a folder of their own."""
    folder = wheel.parent / "installed"
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", partial, wheel], check=True)
        partial.rename(folder)
    return folder


def search_path(first: Path) -> str:
    """``PYTHONPATH`` with the Vulkan build before all else."""
    paths: Sequence[str] = [str(first), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.pathsep.join(paths)


if __name__ == "__main__":
    main()
