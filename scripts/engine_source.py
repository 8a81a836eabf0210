#!/usr/bin/env python3
"""llama-cpp-python's source distribution, kept in the user's cache folder: what wheels are built of, and tests read.

usage: engine_source.py          unpacks that of the installed version into .cache/, once; prints llama.cpp's folder

Standard library only: `install.py` runs before anything is installed.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE = "llama-cpp-python"


def cache_folder() -> Path:
    """Where `edge_llama.host.user_cache` keeps things too; a folder of this clone where there is no such place."""
    try:
        folder = _user_cache()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that can't be written
        folder = ROOT / ".cache"
        folder.mkdir(exist_ok=True)
    return folder


def _user_cache() -> Path:
    if named := os.environ.get("EDGE_LLAMA_CACHE"):
        return Path(named)
    if os.name == "nt":
        return Path(
            os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local", "edge-llama", "edge-llama", "Cache"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edge-llama"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "edge-llama")


def fetch(python: Path, wanted: str) -> Path:
    """The archive of the newest version that is ``wanted``, a requirement; from the package index if it isn't kept."""
    kept = cache_folder() / "sources"
    kept.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as folder:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ENGINE, "--dest", folder]
        command = [str(python), "-m", "pip", "download", *options, wanted]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"pip could not download the source of {wanted}; the messages above say why")
        (archive,) = Path(folder).iterdir()
        return archive.replace(kept / archive.name)


def unpacked(release: str) -> Path:
    """The folder of llama.cpp in that version's source, in this clone's ``.cache``."""
    name = f"llama_cpp_python-{release}"
    source = ROOT / ".cache" / name
    if not source.is_dir():
        source.parent.mkdir(exist_ok=True)
        archive = cache_folder() / "sources" / f"{name}.tar.gz"
        if not archive.is_file():
            archive = fetch(Path(sys.executable), f"{ENGINE}=={release}")
        partial = Path(tempfile.mkdtemp(dir=source.parent, suffix=".partial"))
        try:
            with tarfile.open(archive) as opened:
                opened.extractall(partial, filter="data")
            (partial / name).rename(source)
        finally:
            shutil.rmtree(partial)
    return source / "vendor" / "llama.cpp"


if __name__ == "__main__":
    print(unpacked(version(ENGINE)))
