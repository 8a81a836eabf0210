"""Kill conversions with SIGKILL at random moments, resume each, and compare the results with an undisturbed one.

    python crashes.py SOURCE FOLDER ROUNDS SEED [SUFFIX [OPTIONS]]        prints one line of JSON

SUFFIX is the outputs': .gguf, or without one bundles are written. OPTIONS are the conversion's, as JSON.

A process of its own: children are forked from it, already warm, so that a kill falls into the work and not into
imports.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import converters

OPTIONS: dict[str, Any] = {}


def main() -> None:
    source, folder, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(int(sys.argv[4]))
    suffix = ".gguf" if len(sys.argv) < 6 else sys.argv[5]
    if len(sys.argv) > 6:
        OPTIONS.update(json.loads(sys.argv[6]))
    # The quickest of three: the first is cold, and by it too many kills would come after the end.
    duration = min(undisturbed(source, folder / f"undisturbed{suffix}") for _ in range(3))
    expected = content(folder / f"undisturbed{suffix}")
    output = folder / f"killed{suffix}"
    identical = killed = resumed = left = 0
    for _ in range(rounds):
        killed += killed_at(source, output, duration * rng.random())
        if not output.exists():
            resumed += converters.convert(source, output, **OPTIONS).resumed_bytes > 0
        identical += content(output) == expected
        if converters.partial_folder(output).exists():  # killed between the last rename and the tidying up
            left += 1
            converters.convert(source, output, force=True, **OPTIONS)
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    counts = {"rounds": rounds, "identical": identical, "killed": killed, "resumed": resumed, "left_to_tidy": left}
    print(json.dumps(counts))


def content(output: Path) -> dict[str, bytes]:
    """A file's, or that of all files in a folder."""
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def undisturbed(source: Path, output: Path) -> float:
    """The seconds that a conversion takes."""
    started = time.perf_counter()
    converters.convert(source, output, force=True, **OPTIONS)
    return time.perf_counter() - started


def killed_at(source: Path, output: Path, moment: float) -> bool:
    """Whether the conversion was killed before its end."""
    child = os.fork()
    if child == 0:
        converters.convert(source, output, **OPTIONS)
        os._exit(0)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
