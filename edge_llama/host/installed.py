"""Which Python packages are installed of those that a distribution asks for, by its own metadata."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][\w.-]*)")
_EXTRA = re.compile(r"extra\s*==\s*[\"']([\w.-]+)[\"']")
_SYSTEM = re.compile(r"sys_platform|platform_machine|python_version")


@dataclass(frozen=True, slots=True)
class Extra:
    """Packages that are installed by one name; ``missing`` are those of them that are not."""

    name: str
    missing: tuple[str, ...]


def versions(distribution: str) -> dict[str, str | None]:
    """The version of each package that ``distribution`` can't do without; None for one that is missing."""
    return {name: _version(name) for name, extra in _wanted(distribution) if not extra}


def extras(distribution: str) -> list[Extra]:
    """What may be installed besides, and how much of it is."""
    missing: dict[str, list[str]] = {}
    for name, extra in _wanted(distribution):
        if extra:
            missing.setdefault(extra, [])
            if _version(name) is None:
                missing[extra].append(name)
    return [Extra(name, tuple(packages)) for name, packages in missing.items()]


def _wanted(distribution: str) -> list[tuple[str, str]]:
    """Each package with its extra, or ''; none of those for certain systems alone. Nothing without metadata."""
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:
        return []
    found = []
    for line in lines:
        package, extra = _REQUIREMENT.match(line), _EXTRA.search(line)
        if package and not _SYSTEM.search(line):
            found.append((package[1], extra[1] if extra else ""))
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
