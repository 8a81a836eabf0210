"""``edge-llama doctor``: what is pasted into a report, and nothing that says whose machine it is."""

import getpass
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminals import EDGE_LLAMA

from edge_llama.host import anonymous as anonymizing
from edge_llama.host.anonymous import anonymous
from edge_llama.host.installed import extras, versions
from edge_llama.host.storage import contents, free_bytes

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose path says whose it is, with a cache and a model that somebody keeps there."""
    home = tmp_path_factory.mktemp("homes") / "ada-lovelace"
    (home / "secret-project").mkdir(parents=True)
    (home / "secret-project" / "merger.gguf").write_bytes(b"GGUF")
    return home


@pytest.fixture(scope="module")
def report(home: Path) -> subprocess.CompletedProcess[str]:
    """All of it, by a person with variables that name places."""
    own = {
        "HOME": str(home),
        "USER": "ada-lovelace",
        "LOGNAME": "ada-lovelace",
        "EDGE_LLAMA_CACHE": str(home / "secret-project" / "cache"),
        "EDGE_LLAMA_MODELS": str(home / "secret-project"),
        "EDGE_LLAMA_MODEL": str(home / "secret-project" / "merger.gguf"),
    }
    env = {**os.environ, **own, "COLUMNS": "120"}
    env.pop("EDGE_LLAMA_HISTORY", None)
    return subprocess.run([EDGE_LLAMA, "doctor"], env=env, capture_output=True, text=True, check=False, timeout=250)


def test_it_says_what_a_report_needs(report: subprocess.CompletedProcess[str]) -> None:
    assert (report.returncode, report.stderr) == (0, "")
    for text in (
        "version  edge-llama 0.",
        "python   CPython 3.",
        f"system   {platform.system()} ",
        "llama-cpp-python 0.3.",
        "onnxruntime 1.",
        "extras   convert: installed; demo: installed;",
        "CPU      ",
        "memory   ",
        "cache    $EDGE_LLAMA_CACHE: ",
        "history  ~/.local/share/edge-llama/history: ",
        "GB free there",
        "EDGE_LLAMA_MODEL, EDGE_LLAMA_MODELS",
        "models   1 of folder",
        "engine   llama.cpp 0.3.",
        "device   cpu",
        "check    the cache folder can be written: ok\n",
        "check    llama.cpp works here: ok, ",
        "check    ONNX Runtime works here: ok, ",
        "check    the built-in model answers a token: ok, 'The capital of Japan is' -> ",
    ):
        assert text in report.stdout, report.stdout


def test_nothing_in_it_says_whose_it_is(report: subprocess.CompletedProcess[str], home: Path) -> None:
    told = report.stdout + report.stderr
    personal = ["ada", "lovelace", "secret", "merger", str(home), str(Path(EDGE_LLAMA).parent.parent), "Traceback"]
    assert [word for word in personal if word.lower() in told.lower()] == []
    names = {getpass.getuser(), platform.node(), *platform.node().split(".")[:1]} - {"", "localhost"}
    assert [name for name in names if re.search(rf"\b{re.escape(name)}\b", told, re.IGNORECASE)] == []


def test_json_has_the_same(cli: Cli, home: Path) -> None:
    done = cli("doctor", "--json", env={"HOME": str(home)})
    assert (done.returncode, done.stderr) == (0, "")
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["packages"]["numpy"] == versions("edge-llama")["numpy"]
    assert facts["folders"]["cache"]["path"] == "$EDGE_LLAMA_CACHE"
    assert [engine["name"] for engine in facts["devices"]["engines"]][:2] == ["llama.cpp", "ONNX Runtime"]
    assert [check["problem"] for check in facts["checks"]] == [""] * len(facts["checks"])
    assert str(home) not in done.stdout


def test_a_check_that_fails_is_told_and_is_exit_code_1(environment: dict[str, str], tmp_path: Path) -> None:
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, types\nllama_model_default_params = types.SimpleNamespace\n"
        "llama_model_load_from_file = lambda *_: os.abort()\n"
    )
    (tmp_path / "file").touch()
    path = f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    env = {**environment, "PYTHONPATH": path, "EDGE_LLAMA_CACHE": str(tmp_path / "file" / "cache")}
    done = subprocess.run([EDGE_LLAMA, "doctor"], env=env, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 1
    assert "check    the cache folder can be written: FAILED: " in done.stdout
    assert "check    llama.cpp works here: FAILED: llama.cpp does not work here: a test decode died" in done.stdout
    assert "check    ONNX Runtime works here: ok" in done.stdout
    assert "check    the built-in model answers a token: FAILED: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert str(tmp_path) not in done.stdout


def test_what_is_fast_comes_first(environment: dict[str, str]) -> None:
    """Versions are there while a child process still decodes."""
    with subprocess.Popen([EDGE_LLAMA, "doctor"], env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline().startswith("version  edge-llama")
        assert running.poll() is None
        running.kill()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{home}/x.gguf: no such file", "~/x.gguf: no such file"),
        ("{home}less/x", "{home}less/x"),
        ("at {home}.", "at ~."),
        ("{home}.old", "{home}.old"),
        ("/mnt/{user}/x", "/mnt/USER/x"),
        ("asked {user}: no", "asked USER: no"),
        ("{user}land and x-{user}", "{user}land and x-{user}"),
        ("http://{host}:80/", "http://HOST:80/"),
        ("{host}.navy, {host}.lan", "HOST, HOST.lan"),
        ("{prefix}/lib", "PREFIX/lib"),
    ],
)
def test_names_that_stand_alone_are_replaced(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, prefix = str(tmp_path / "grace"), str(tmp_path / "venv")
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("USERPROFILE", home)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "hopper")
    monkeypatch.setattr("sys.prefix", prefix)
    monkeypatch.setattr(platform, "node", lambda: "mark-1.navy")
    for cached in (anonymizing._places, anonymizing._names):
        cached.cache_clear()
    known = {"home": home, "user": "hopper", "host": "mark-1", "prefix": prefix}
    assert anonymous(text.format(**known)) == expected.format(**known)
    monkeypatch.undo()
    for cached in (anonymizing._places, anonymizing._names):
        cached.cache_clear()


def test_packages_are_those_that_are_asked_for() -> None:
    assert {"numpy", "onnxruntime", "llama-cpp-python"} <= set(versions("edge-llama"))
    assert "numba" not in versions("edge-llama")
    assert {extra.name: extra.missing for extra in extras("edge-llama")}["convert"] == ()
    assert versions("no-such-distribution") == {}


def test_folders_are_counted_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"x" * 1000)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    found = contents(tmp_path)
    assert found.files == 2
    assert 1000 <= found.bytes < 2000
    assert contents(tmp_path / "nothing").files == 0
    assert (free_bytes(tmp_path / "not" / "there") or 0) > 0
