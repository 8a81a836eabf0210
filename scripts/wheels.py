#!/usr/bin/env python3
"""Which of our dependencies other systems get as wheels: `make wheels` prints the table of docs/install.md.

    python scripts/wheels.py                        # every system, with all extras that users install
    python scripts/wheels.py windows --python 3.13  # one of them, for another Python

pip resolves for a system that isn't here (--platform, --only-binary=:all:, --dry-run: headers are asked for, nothing is
installed), wave after wave: the first is what pyproject.toml asks for, each later one what the wheels before it ask
for. pip reads markers as of the system that it runs on, so they are read here, by the other system's values. Of what
has no wheel, the requirements are those of the package that is installed here. The exit code is 1 if there is a
package without a wheel that no way round is known for.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("convert", "demo", "remote", "serve", "video")
"""What users install: all but what is for our own tests."""
OURS = "edge-llama"
WAYS_ROUND = {
    "llama-cpp-python": "its own index of wheels (docs/install.md: Without a compiler), or a libllama that is there "
    "already, by LLAMA_CPP_LIB_PATH (docs/install.md: A libllama of your own)"
}
_NONE = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class System:
    """A system that is not here: pip's tags for it, and what its markers say."""

    name: str
    platforms: tuple[str, ...]
    markers: Mapping[str, str]


SYSTEMS = (
    System(
        "windows",
        ("win_amd64",),
        {"os_name": "nt", "sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
    ),
    System(
        "macos",
        tuple(f"macosx_{major}_{minor}_{kind}" for major, minor in ((14, 0), (13, 0), (12, 0), (11, 0))
              for kind in ("arm64", "universal2")),
        {"os_name": "posix", "sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    ),
    System(
        "linux-arm64",
        (*(f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)), "manylinux2014_aarch64"),
        {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    ),
)  # fmt: skip


@dataclass
class Resolved:
    """What one system gets: versions and files by name, and what has no wheel there."""

    wheels: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", help=f"of {', '.join(each.name for each in SYSTEMS)}; all by default")
    parser.add_argument(
        "--python", default="{}.{}".format(*sys.version_info), help="its version; by default this one's"
    )
    given = parser.parse_args()
    known = {each.name: each for each in SYSTEMS}
    if unknown := [name for name in given.systems if name not in known]:
        parser.error(f"{', '.join(unknown)}: unknown; known: {', '.join(known)}")
    chosen = [known[name] for name in given.systems] or list(SYSTEMS)
    found = {system.name: resolve(system, given.python, direct()) for system in chosen}
    print("\n".join(table(chosen, found, given.python)))
    sys.exit(any(set(each.lacking) - set(WAYS_ROUND) or each.conflicts for each in found.values()))


def direct() -> list[Requirement]:
    """What pyproject.toml asks for, with the extras that users install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    return [each for each in map(Requirement, lines) if canonicalize_name(each.name) != OURS]


def resolve(system: System, python: str, wanted: Iterable[Requirement]) -> Resolved:
    """Wave after wave, until no wheel asks for what isn't known."""
    found, asked = Resolved(), dict[str, Requirement]()
    environment = {**system.markers, "python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": ""}
    waiting = [each for each in wanted if applies(each, environment, ())]
    while waiting:
        changed = merged(asked, waiting)
        print(f"{system.name}: {len(asked)} packages, {len(changed)} to look up", file=sys.stderr, flush=True)
        reports = look_up(system, python, [asked[name] for name in changed if name not in found.lacking], found)
        reports |= {name: installed(name) for name in changed if name in found.lacking}
        waiting = [
            each
            for name, lines in reports.items()
            for each in map(Requirement, lines)
            if applies(each, environment, asked[name].extras) and is_new(each, asked)
        ]
    return found


def applies(wanted: Requirement, environment: Mapping[str, str], extras: Iterable[str]) -> bool:
    """Whether a package that was asked for with these extras needs it on that system."""
    marker = wanted.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras))


def is_new(wanted: Requirement, asked: Mapping[str, Requirement]) -> bool:
    """Whether nobody asked for as much before."""
    before = asked.get(canonicalize_name(wanted.name))
    return before is None or not wanted.extras <= before.extras or not set(wanted.specifier) <= set(before.specifier)


def merged(asked: dict[str, Requirement], wanted: Iterable[Requirement]) -> list[str]:
    """Put them into ``asked``, whose names and extras and versions become more; the names that changed, in order."""
    changed = dict[str, None]()
    for each in wanted:
        name = canonicalize_name(each.name)
        before = asked.get(name, Requirement(name))
        both = Requirement(name)
        both.extras = before.extras | each.extras
        both.specifier = SpecifierSet(",".join(sorted({*map(str, before.specifier), *map(str, each.specifier)})))
        asked[name] = both
        changed[name] = None
    return list(changed)


def look_up(system: System, python: str, wanted: Sequence[Requirement], found: Resolved) -> dict[str, list[str]]:
    """What each of these wheels asks for itself. What there is none of is noted, and the others are asked for again."""
    left = list(wanted)
    while left:
        answer = report(system, python, left)
        if not isinstance(answer, str):
            return {name: noted(name, entry, found) for name, entry in answer.items()}
        missing = _NONE.search(answer)
        name = canonicalize_name(missing[1]) if missing else ""
        if name not in {each.name for each in left}:
            found.conflicts.append(answer.strip().splitlines()[-1] if answer.strip() else "pip failed")
            return {}
        (gone,) = (each for each in left if each.name == name)
        found.lacking[name] = str(gone.specifier)
        found.wheels.pop(name, None)
        left.remove(gone)
    return {}


def noted(name: str, entry: Mapping[str, Any], found: Resolved) -> list[str]:
    metadata = entry["metadata"]
    found.wheels[name] = f"{metadata['version']} {entry['download_info']['url'].rpartition('/')[2]}"
    return list(metadata.get("requires_dist", ()))


def report(system: System, python: str, wanted: Sequence[Requirement]) -> dict[str, Any] | str:
    """Pip's report by name, or what it said when it failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        platforms = [word for platform in system.platforms for word in ("--platform", platform)]
        options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--target", folder]
        options += ["--python-version", python, "--implementation", "cp", *platforms, "--report", str(path), "--quiet"]
        command = [sys.executable, "-m", "pip", "install", *options, *map(str, wanted)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            return done.stderr
        entries = json.loads(path.read_text("utf-8"))["install"]
        return {canonicalize_name(entry["metadata"]["name"]): entry for entry in entries}


def installed(name: str) -> list[str]:
    """What the package that is installed here asks for."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def table(systems: Sequence[System], found: Mapping[str, Resolved], python: str) -> Iterator[str]:
    """Markdown: a row for each system, then what has no wheel and what to do about it."""
    yield f"| Python {python}, for | as pip's | wheels | of them compiled | without a wheel |"
    yield "|---|---|---|---|---|"
    for system in systems:
        each = found[system.name]
        compiled = [file for file in each.wheels.values() if not file.endswith("-any.whl")]
        lacking = ", ".join(f"`{name}`" for name in sorted(each.lacking)) or "none"
        yield f"| {system.name} | `{system.platforms[0]}` | {len(each.wheels)} | {len(compiled)} | {lacking} |"
    yield ""
    for name in sorted({name for each in found.values() for name in each.lacking}):
        yield f"{name}: {WAYS_ROUND.get(name, 'no way round is known')}"
    for system in systems:
        yield from (f"{system.name}: {conflict}" for conflict in found[system.name].conflicts)


if __name__ == "__main__":
    main()
