"""Which build of llama.cpp is installed, and what is built: with a package in its place that is built in a second."""

import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import install
import pytest
from engine_source import cache_folder
from install import NO_AMX, NO_FUSING, CachedWheel, Variant, first_that_works, variants

from edge_llama.backends.llama_cpp.build_probe import rebuild_remedy

# Builds a wheel that holds the flags it was built with, and counts.
BACKEND = """
import os, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    with open(os.environ["BUILDS"], "a") as file:
        file.write(os.environ.get("CFLAGS", "") + "\\n")
    name = "engine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("engine.txt", os.environ.get("CFLAGS", ""))
        wheel.writestr("engine-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: engine\\nVersion: 1.0\\n")
        wheel.writestr("engine-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("engine-1.0.dist-info/RECORD", "")
    return name
"""
NATIVE, PLAIN = Variant("natively", ""), Variant("without AMX", NO_AMX)
Wheels = Callable[[], list[CachedWheel]]


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each build, in an empty cache."""
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BUILDS", str(tmp_path / "builds"))
    for name in install.BUILD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "builds").touch()
    return tmp_path / "builds"


@pytest.fixture
def wheels(builds: Path, tmp_path: Path) -> Wheels:
    """The two variants, as each clone of the repository looks for them."""
    folder = tmp_path / "engine-1.0"
    folder.mkdir()
    (folder / "backend.py").write_text(BACKEND)
    table = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (folder / "pyproject.toml").write_text(table + '[project]\nname = "engine"\nversion = "1.0"\n')
    with tarfile.open(tmp_path / "engine-1.0.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    source = tmp_path / "engine-1.0.tar.gz"
    return lambda: [CachedWheel(Path(sys.executable), source, variant) for variant in (NATIVE, PLAIN)]


def test_the_native_build_comes_first_and_each_variant_is_built_once(wheels: Wheels, builds: Path) -> None:
    for _clone in range(2):
        assert first_that_works(wheels(), lambda wheel: "").variant == NATIVE
    assert builds.read_text() == "\n"


def test_where_it_dies_the_next_is_built_and_another_clone_tries_neither_again(wheels: Wheels, builds: Path) -> None:
    tried: list[bool] = []

    def native_dies(wheel: Path) -> str:
        tried.append(NO_AMX.encode() in wheel.read_bytes())
        return "" if tried[-1] else "a test decode died of signal 11"

    for _clone in range(2):
        assert first_that_works(wheels(), native_dies).variant == PLAIN
    assert tried == [False, True, True]
    assert builds.read_text() == f"\n{NO_AMX}\n"


def test_a_failure_that_may_pass_is_not_remembered(wheels: Wheels, builds: Path) -> None:
    with pytest.raises(SystemExit, match="does not run on this processor"):
        first_that_works(wheels(), lambda wheel: "a test decode took more than 120 s")
    assert first_that_works(wheels(), lambda wheel: "").variant == NATIVE
    assert builds.read_text() == f"\n{NO_AMX}\n\n"


@pytest.mark.parametrize("name", ["CFLAGS", "CMAKE_ARGS", "CXX"])
def test_other_flags_of_the_users_are_another_wheel(name: str, wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    before = wheels()
    monkeypatch.setenv(name, "-Dx")
    assert {wheel.folder for wheel in before}.isdisjoint(wheel.folder for wheel in wheels())


def test_another_processor_is_another_wheel(wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    before = wheels()
    assert [wheel.folder for wheel in before] == [wheel.folder for wheel in wheels()]
    monkeypatch.setattr(install, "processor", lambda: ["x86_64", "another"])
    assert {wheel.folder for wheel in before}.isdisjoint(wheel.folder for wheel in wheels())


def test_the_variants_of_a_machine() -> None:
    assert [variant.flags for variant in variants("x86_64", "posix")] == [NO_FUSING, f"{NO_FUSING} {NO_AMX}"]
    assert [variant.flags for variant in variants("AMD64", "nt")] == [""]
    assert [variant.flags for variant in variants("aarch64", "posix")] == [NO_FUSING]
    assert [variant.flags for variant in variants("riscv64", "posix")] == [NO_FUSING]


@pytest.mark.parametrize("machine", ["x86_64", "arm64", "ppc64le"])
def test_the_remedy_of_a_broken_engine_names_the_flags_of_the_last_variant(machine: str) -> None:
    assert f"'{variants(machine, 'posix')[-1].flags}'" in rebuild_remedy(machine, "posix")
    assert "CFLAGS" not in rebuild_remedy(machine, "nt")


def test_flags_come_after_the_users() -> None:
    given = {"CFLAGS": "-g", "HOME": "/"}
    assert install.with_flags(given, "-x") == {"CFLAGS": "-g -x", "CXXFLAGS": "-x", "HOME": "/"}
    assert install.with_flags(given, "") == given


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and homes")
def test_a_home_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "file" / "cache"))
    assert cache_folder() == install.ROOT / ".cache"


def test_what_an_environment_fulfils() -> None:
    assert install.has(Path(sys.executable), install.requirement())
    assert not install.has(Path(sys.executable), "llama-cpp-python>=99")


def test_a_build_tells_what_it_does_and_leaves_no_log(wheels: Wheels, capfd: pytest.CaptureFixture[str]) -> None:
    wheel = wheels()[0].wheel()
    first, last = capfd.readouterr().out.splitlines()
    assert first == "compiling llama.cpp natively, once on this machine: 3 to 7 minutes on two cores"
    assert last.startswith("compiling: done in 0:")
    assert not (wheel.parent / "build.log").exists()


def test_a_build_that_fails_shows_why_and_keeps_its_log(
    wheels: Wheels, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUILDS", "/no/such/folder/builds")
    (wheel, _) = wheels()
    with pytest.raises(SystemExit, match="pip failed with 1"):
        wheel.wheel()
    told = capfd.readouterr().out
    assert "FileNotFoundError" in told
    assert str(wheel.folder / "build.log") in told
    assert "FileNotFoundError" in (wheel.folder / "build.log").read_text("utf-8")
