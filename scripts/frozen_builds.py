"""What `make test-frozen` builds: an environment with the wheel in it, and folders that PyInstaller writes."""

import os
import subprocess
import sys
from pathlib import Path

from engine_source import ENGINE, ROOT, cache_folder, fetch
from install import CachedWheel, requirement, variants

PLACE = ROOT / ".cache" / "frozen"
EXTRAS = "convert,remote,serve,video"
TOOLS = ("pyinstaller>=6.16", "pyside6-essentials>=6.9")
ENTRY = "from edge_llama.cli import main\n\nmain()\n"
DESKTOP = ROOT / "examples" / "desktop" / "desktop.spec"
FOLDER = "Modèles déjà vus 模型"
"""Where the programs are copied to, and run."""


def environment() -> Path:
    """The Python of an environment with edge-llama as a wheel, and what freezes it."""
    python = PLACE / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        print(f"making {python.parent.parent}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        pip(python, "install", str(engine_wheel(python)), *TOOLS, f"{ROOT}[{EXTRAS}]")
    pip(python, "install", "--force-reinstall", "--no-deps", str(ROOT))  # the sources as they are now
    return python


def engine_wheel(python: Path) -> Path:
    """llama-cpp-python as `make` has built it for this processor: what failed here before is not tried again."""
    kept = sorted((cache_folder() / "sources").glob(f"{ENGINE.replace('-', '_')}-*.tar.gz"))
    source = kept[-1] if kept else fetch(python, requirement())
    wheels = [CachedWheel(python, source, variant) for variant in variants()]
    return next(each for each in wheels if not each.known_fault()).wheel()


def pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(f"pip failed with {code}; the messages above say why")


def build(python: Path, name: str) -> Path:
    """The folder of a program that is called ``name``; PyInstaller's own log is in a file beside it."""
    work = PLACE / "build" / name
    work.mkdir(parents=True, exist_ok=True)
    if name == "edge-llama":
        (work / "edge_llama_program.py").write_text(ENTRY, "utf-8")
        what = ["--name", name, "--specpath", str(work), str(work / "edge_llama_program.py")]
    else:
        what = [str(DESKTOP), *(("--", "--smallest") if name == "smallest" else ())]
    options = ["--noconfirm", "--distpath", str(work / "dist"), "--workpath", str(work / "work")]
    print(f"freezing {name}", flush=True)
    with (work / "log.txt").open("w", encoding="utf-8") as log:
        command = [str(python), "-m", "PyInstaller", *options, *what]
        done = subprocess.run(command, cwd=work, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"PyInstaller ended with {done.returncode}: {work / 'log.txt'} says why")
    (folder,) = (work / "dist").iterdir()
    return folder


PARTS = {
    "Qt, PySide6": ("PySide6", "shiboken6", "libQt6", "libicu", "libpyside", "libshiboken"),
    "llama.cpp": ("llama_cpp", "libllama", "libggml", "libmtmd"),
    "onnxruntime": ("onnxruntime",),
    "numba, llvmlite": ("numba", "llvmlite"),
    "av (video)": ("av",),
    "numpy": ("numpy",),
    "tokenizers": ("tokenizers",),
    "llguidance": ("llguidance",),
    "Pillow": ("PIL", "pillow"),
    "sentencepiece": ("sentencepiece",),
    "Python itself": ("libpython", "base_library", "lib-dynload", "python3"),
}


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the program's parts, the largest first, links counted as nothing; then of all."""
    found = dict.fromkeys(PARTS, 0) | {"its own code": 0, "other libraries": 0}
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            found[_part(file.relative_to(folder))] += file.stat().st_size
    ordered = dict(sorted(((name, size) for name, size in found.items() if size), key=lambda each: -each[1]))
    return ordered | {"all": sum(ordered.values())}


def _part(path: Path) -> str:
    parts = path.parts
    if len(parts) == 1:
        return "its own code"  # the program: all of Python's modules lie in it
    first = parts[1].lower()
    for name, beginnings in PARTS.items():
        if any(
            first == each.lower() or first.startswith((f"{each.lower()}.", f"{each.lower()}-")) for each in beginnings
        ):
            return name
        if any(each.startswith("lib") and first.startswith(each.lower()) for each in beginnings):
            return name
    return "other libraries"
