"""Findings are found again by their whole key, and losing them loses only time."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge_llama.host.user_cache import CACHE_VARIABLE, folder, recall, remember


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_finding_is_found_by_its_whole_key(cache: Path) -> None:
    remember("speed", {"cpu": "a", "features": ("x", "y")}, {"best": 3})
    assert recall("speed", {"cpu": "a", "features": ("x", "y")}) == {"best": 3}
    assert recall("speed", {"cpu": "b", "features": ("x", "y")}) is None
    assert recall("speed", {"cpu": "a", "features": ("x",)}) is None
    assert recall("health", {"cpu": "a", "features": ("x", "y")}) is None


def test_the_latest_finding_counts_and_nothing_else_is_left(cache: Path) -> None:
    remember("speed", {"cpu": "a"}, {"best": 3})
    remember("speed", {"cpu": "a"}, {"best": 4})
    assert recall("speed", {"cpu": "a"}) == {"best": 4}
    assert len(list((cache / "speed").iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_only_the_owner_may_read_it(cache: Path) -> None:
    remember("speed", {"cpu": "a"}, {"best": 3})
    (path,) = (cache / "speed").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"key": {"cpu": "b"}, "found": {}}'])
def test_a_damaged_file_is_as_none_and_is_written_anew(cache: Path, content: bytes) -> None:
    remember("speed", {"cpu": "a"}, {"best": 3})
    (path,) = (cache / "speed").iterdir()
    path.write_bytes(content)
    assert recall("speed", {"cpu": "a"}) is None
    remember("speed", {"cpu": "a"}, {"best": 5})
    assert recall("speed", {"cpu": "a"}) == {"best": 5}


def test_a_folder_that_cannot_be_written_is_left(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    remember("speed", {"cpu": "a"}, {"best": 3})
    assert recall("speed", {"cpu": "a"}) is None


def test_without_the_variable_it_is_the_systems_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE)
    assert folder().is_absolute()
    assert folder().name == "edge-llama" or "edge-llama" in folder().parts


@pytest.mark.skipif(sys.platform != "linux", reason="how Linux finds a home")
def test_a_user_without_a_home_gets_no_folder_in_the_current_one(tmp_path: Path) -> None:
    code = (
        "import pwd, sys\n"
        "pwd.getpwuid = lambda _: (_ for _ in ()).throw(KeyError())\n"
        "from edge_llama.host.user_cache import recall, remember\n"
        "remember('speed', {}, {'best': 1})\n"
        "sys.exit(recall('speed', {}) is not None)"
    )
    env = {name: value for name, value in os.environ.items() if name not in (CACHE_VARIABLE, "HOME", "XDG_CACHE_HOME")}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
