"""An engine of another package, found by its entry point alone: it opens, inspects, verifies and chats like our own."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from terminals import EDGE_LLAMA

TEXT = "To be, or not to be."
OUTSIDE = Path(__file__).resolve().parent.parent / "outside"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for Python's path in which a package says that it has an engine, as pip would install it."""
    site = tmp_path_factory.mktemp("site")
    about = site / "reciting-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: reciting\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[edge_llama.engines]\nreciting = reciting_engine:ENGINE\n")
    (site / "reciting_engine.py").symlink_to(OUTSIDE / "reciting_engine.py")
    return site


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "hamlet.recite"
    path.write_text(json.dumps({"text": TEXT, "sha256": hashlib.sha256(TEXT.encode()).hexdigest()}))
    return path


def run(site: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)


def test_it_answers(site: Path, model: Path) -> None:
    done = run(site, EDGE_LLAMA, "run", model, "What is the question?", "--temperature", "0")
    assert (done.returncode, done.stdout) == (0, TEXT + "\n"), done.stderr


def test_it_chats_and_its_sessions_are_taken_up(site: Path, model: Path, tmp_path: Path) -> None:
    code = (
        "import sys, edge_llama\n"
        "path, saved = sys.argv[1:]\n"
        "with edge_llama.open(path, device='stage') as model:\n"
        "    chat = model.chat(temperature=0)\n"
        "    print(*(piece.text for piece in chat.send('What?')), sep='')\n"
        "    chat.save(saved)\n"
        "    print(model.placement, model.choice)\n"
        "with edge_llama.open(path) as model:\n"
        "    chat = model.load_chat(saved, temperature=0)\n"
        "    answer = chat.send('And again?').result()\n"
        "    print(answer.text, answer.timings.cached_tokens > 0, chat.reread_reason)\n"
    )
    done = run(site, sys.executable, "-c", code, model, tmp_path / "a.session")
    placed = "stage (where it was told) KV f16, batch 64 (the only one)"
    assert done.stdout.splitlines() == [TEXT, placed, f"{TEXT} True None"], done.stderr


def test_it_is_inspected(site: Path, model: Path) -> None:
    done = run(site, EDGE_LLAMA, "inspect", model, "--json")
    found = json.loads(done.stdout)
    assert found["towers"] == {"text": {"engine": "reciting", "architecture": "recite", "file": str(model)}}
    assert found["metadata"] == {"text": TEXT}
    assert "text tower (recite), a text to recite" in run(site, EDGE_LLAMA, "inspect", model).stdout


def test_it_is_verified(site: Path, model: Path) -> None:
    assert run(site, EDGE_LLAMA, "verify", model).returncode == 0
    model.write_text(model.read_text().replace("not", "ton"))
    done = run(site, EDGE_LLAMA, "verify", model)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not as it was written" in done.stderr


def test_its_errors_are_ours(site: Path, model: Path) -> None:
    done = run(site, EDGE_LLAMA, "run", model, "What?", "--device", "gpu")
    assert (done.returncode, done.stderr) == (2, "edge-llama: device gpu: not for reciting; known: cpu, stage\n")


def test_devices_tells_of_it(site: Path) -> None:
    engines = json.loads(run(site, EDGE_LLAMA, "devices", "--json").stdout)["engines"]
    assert [engine["name"] for engine in engines] == ["llama.cpp", "ONNX Runtime", "Reciting"]


def test_it_is_found_in_a_folder(site: Path, model: Path) -> None:
    done = run(site, EDGE_LLAMA, "run", model.parent, "What?", "--temperature", "0")
    assert done.stdout == TEXT + "\n", done.stderr


def test_without_its_package_the_file_is_refused(model: Path) -> None:
    done = run(Path(), EDGE_LLAMA, "run", model, "What?")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "hamlet.recite" in done.stderr


def test_one_that_cannot_be_loaded_is_named(site: Path, model: Path, tmp_path: Path) -> None:
    about = tmp_path / "broken-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[edge_llama.engines]\nbroken = there_is_no_such_module:ENGINE\n")
    done = run(tmp_path, EDGE_LLAMA, "run", model, "What?")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    problem = "the engine broken (there_is_no_such_module:ENGINE) cannot be loaded: ModuleNotFoundError"
    assert problem in done.stderr
    assert problem in run(tmp_path, EDGE_LLAMA, "devices").stdout


def test_it_keeps_the_protocols(site: Path) -> None:
    done = run(site, sys.executable, "-m", "mypy", "--strict", OUTSIDE / "reciting_engine.py")
    assert done.returncode == 0, done.stdout
