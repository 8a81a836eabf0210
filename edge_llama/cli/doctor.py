"""``edge-llama doctor``: what to paste into a report."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer

from edge_llama.backends.local_models import local_models
from edge_llama.cli import options
from edge_llama.cli.devices import described, engine_lines, machine_lines
from edge_llama.cli.health import Check, checks
from edge_llama.errors import EdgeLlamaError, printable
from edge_llama.files.artifact import converted_path, packaged_path
from edge_llama.history.store import folder as history_folder
from edge_llama.host import user_cache
from edge_llama.host.anonymous import anonymous
from edge_llama.host.installed import extras, versions
from edge_llama.host.storage import contents, free_bytes
from edge_llama.planning.engine_report import engines

_OURS = "edge-llama"
_MOST_NAMED = 3
_LEAST_SECONDS = 0.1
"""What took less is not told: it was found before, or at once."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Lines of the report, and the same for programs."""

    lines: list[str]
    facts: dict[str, Any] = field(default_factory=dict)


def doctor(as_json: options.Json = False) -> None:
    """Check that models can run here, and print all that a report of a problem should say of this machine.

    Versions, engines, devices, caches, disk and memory, and checks by child processes. No path of yours, no name of
    user or machine is in it. What is fast comes first; the checks take some seconds.

    Exit code 1: a check failed.

    Example: edge-llama doctor > report.txt
    """
    facts: dict[str, Any] = {}
    for part in (_software(), _machine(), _disk(), _settings()):
        _print(part.lines, quiet=as_json)
        facts |= part.facts
    found = engines(again=True)
    _print(engine_lines(found), quiet=as_json)
    done = list(_checked(found, quiet=as_json))
    if as_json:
        facts |= {"devices": described(found), "checks": [asdict(check) for check in done]}
        print(json.dumps(_without_names(facts), ensure_ascii=False))  # noqa: T201
    if any(check.problem for check in done):
        raise typer.Exit(1)


def _print(lines: list[str], *, quiet: bool) -> None:
    for line in lines if not quiet else ():
        print(printable(anonymous(line)), flush=True)  # noqa: T201


def _without_names(value: Any) -> Any:
    """Every text in it by :func:`anonymous`."""
    if isinstance(value, dict):
        return {name: _without_names(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_names(each) for each in value]
    return anonymous(value) if isinstance(value, str) else value


def _checked(found: list[Any], *, quiet: bool) -> Iterator[Check]:
    for name, work in checks(found):
        if not quiet:
            print(f"check    {name}: ", end="", flush=True)  # noqa: T201
        check = work()
        _print([_outcome(check)], quiet=quiet)
        yield check


def _outcome(check: Check) -> str:
    if check.is_skipped:
        return f"left out, {check.found}"
    if check.problem:
        return f"FAILED: {check.problem}"
    parts = ["ok", check.found, f"{check.seconds:.1f} s" if check.seconds >= _LEAST_SECONDS else ""]
    return ", ".join(filter(None, parts))


def _software() -> _Part:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    where = "frozen" if getattr(sys, "frozen", False) else "in an environment" if sys.prefix != sys.base_prefix else ""
    system = f"{platform.system()} {platform.release()} {platform.machine()} {' '.join(platform.libc_ver())}".strip()
    packages, optional = versions(_OURS), extras(_OURS)
    named = [f"{name} {number or 'MISSING'}" for name, number in packages.items()]
    return _Part(
        [
            f"version  {_OURS} {version(_OURS)}",
            f"python   {python}{f', {where}' if where else ''}",
            f"system   {system}",
            *(f"{'packages' if not at else '':8} {', '.join(named[at : at + 5])}" for at in range(0, len(named), 5)),
            f"extras   {'; '.join(f'{extra.name}: {_lacks(extra.missing)}' for extra in optional)}",
        ],
        {
            "version": version(_OURS),
            "python": python,
            "system": system,
            "packages": packages,
            "extras": {extra.name: list(extra.missing) for extra in optional},
        },
    )


def _lacks(missing: tuple[str, ...]) -> str:
    if not missing:
        return "installed"
    return f"lacks {', '.join(missing) if len(missing) <= _MOST_NAMED else f'{len(missing)} packages'}"


def _machine() -> _Part:
    return _Part(machine_lines())


def _disk() -> _Part:
    """The folders that we write, and what would still fit there."""
    lines: list[str] = []
    facts: dict[str, Any] = {}
    for name, place in _folders():
        if not isinstance(place, Path):
            lines.append(f"{name:8} {place}")
            continue
        kept, free = contents(place), free_bytes(place)
        room = "" if free is None else f", {free / 1e9:,.1f} GB free there"
        lines.append(f"{name:8} {place}: {kept.bytes / 1e6:,.1f} MB in {kept.files:,} files{room}")
        facts[name] = {"path": str(place), **asdict(kept), "free": free}
    return _Part(lines, {"folders": facts})


def _folders() -> Iterator[tuple[str, Path | str]]:
    """Each by its name; a text where there is none."""
    for name, find in (("cache", user_cache.folder), ("history", history_folder)):
        try:
            yield name, find() or "off"
        except (EdgeLlamaError, OSError) as error:
            yield name, f"none: {error}"
    built_in = converted_path() if converted_path().is_file() else packaged_path()
    yield "built-in", f"{built_in.name}, {built_in.stat().st_size / 1e6:,.1f} MB" if built_in else "no model"


def _settings() -> _Part:
    """Which of our variables are set, not to what; how many models lie here, not which."""
    names = sorted(name for name in os.environ if name.startswith("EDGE_LLAMA_"))
    stores: dict[str, int] = {}
    for model in local_models():
        stores[model.store] = stores.get(model.store, 0) + 1
    counts = ", ".join(f"{count} of {store}" for store, count in stores.items())
    return _Part(
        [f"set      {', '.join(names) or 'none of our variables'}", f"models   {counts or 'none found'}"],
        {"variables": names, "models": stores},
    )
