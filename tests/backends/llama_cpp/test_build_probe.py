"""The proof that llama.cpp works here, and what a broken build looks like."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_llama import EngineError
from edge_llama.backends.llama_cpp import build_probe

ABORTING = """
import os, types
__version__ = "0.3.36"
llama_model_default_params = types.SimpleNamespace
def llama_model_load_from_file(*_): os.abort()
"""


def test_the_installed_engine_decodes() -> None:
    verdict = build_probe.check()
    assert verdict.version.startswith("0.3.")
    assert "CPU" in verdict.system_info
    assert "cpu" in {device.kind for device in verdict.devices}


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as interpreter")
def test_an_engine_that_kills_its_process_is_reported(broken_interpreter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", broken_interpreter)
    with pytest.raises(EngineError, match=r"died of signal 11.*CXXFLAGS set to '-"):
        build_probe.check()


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as interpreter")
def test_a_good_verdict_is_remembered_and_a_bad_one_is_not(
    empty_cache: Path, broken_interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", broken_interpreter)
        with pytest.raises(EngineError):
            build_probe.verdict()
    good = build_probe.verdict()
    monkeypatch.setattr(sys, "executable", broken_interpreter)
    assert build_probe.verdict() == good
    with pytest.raises(EngineError):
        build_probe.verdict(again=True)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as interpreter")
def test_another_build_is_checked_anew(
    empty_cache: Path, broken_interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_probe.verdict()
    other = {**(build_probe.build() or {}), "files": [("libllama.so", 1, 2)]}
    monkeypatch.setattr(sys, "executable", broken_interpreter)
    with monkeypatch.context() as rebuilt:
        rebuilt.setattr(build_probe, "build", lambda: other)
        with pytest.raises(EngineError):
            build_probe.verdict()
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")  # which shows it other devices
    with pytest.raises(EngineError):
        build_probe.verdict()


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as interpreter")
def test_devices_are_listed_anew_whatever_is_remembered(
    empty_cache: Path, broken_interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = replace(build_probe.verdict(), devices=())
    assert "cpu" in {device.kind for device in build_probe.present(old)}
    monkeypatch.setattr(sys, "executable", broken_interpreter)
    assert build_probe.present(old) == ()


@pytest.mark.parametrize(
    ("source", "how"),
    [(ABORTING, "died of signal 6"), ("raise ImportError('libgomp is missing')", "libgomp is missing")],
)
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_broken_engine_is_refused_and_the_process_lives(
    packaged: Path, empty_cache: Path, tmp_path: Path, source: str, how: str
) -> None:
    package = tmp_path / "broken" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    code = (
        "import sys, edge_llama\n"
        f"sys.path.insert(0, {str(package.parent)!r})\n"
        f"try: edge_llama.open({str(packaged)!r})\n"
        "except edge_llama.EngineError as error: print(error)\n"
        "else: sys.exit('it was opened')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "llama.cpp does not work here" in done.stdout
    assert how in done.stdout
    assert "build llama-cpp-python again" in done.stdout
