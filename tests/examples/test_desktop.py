"""The desktop example in a real event loop without a screen: `make test-desktop` (PySide6 is no part of the suite)."""

import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import architectures
import field_sweep
import psutil
import pytest

import converters
from edge_llama.files.gguf import read_header
from edge_llama.host.user_cache import CACHE_VARIABLE

if find_spec("PySide6") is None:
    pytest.skip("PySide6 is not installed: make test-desktop", allow_module_level=True)
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SECONDS = 120
STALL = 0.1
"""What a person begins to notice."""
RUNS = 5
"""The median counts: a machine with other work on it keeps any process waiting now and then."""


def drive(scenario: str, *arguments: object, **environment: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "desktop_driver.py"), scenario, *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        command,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (found["code"], found["threads"]) == (0, []) or scenario == "closes_while_loading"
    return found


@pytest.fixture(scope="module")
def deadly(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that ends the process of who loads it."""
    folder = tmp_path_factory.mktemp("deadly")
    return architectures.deadly(folder / "bad.gguf", read_header(field_sweep.small(packaged, folder / "small.gguf")))


@pytest.mark.alone
def test_the_window_never_stalls_while_it_loads_and_answers(packaged: Path, tmp_path: Path) -> None:
    """The one figure that is asked for. Each run loads a file that nobody tried here before: a child meets it first."""
    found = [drive("answers", packaged, **{CACHE_VARIABLE: str(tmp_path / str(run))}) for run in range(RUNS)]
    longest = [each["longest"] for each in found]
    print(f"longest stalls: {', '.join(f'{1000 * each:.0f} ms' for each in longest)}")
    assert statistics.median(longest) < STALL, longest
    for each in found:
        assert len(each["said"]) == 4
        assert "Tokyo" in each["said"][1]
        assert each["page"].startswith(f"You: {each['said'][0]}\nModel: {each['said'][1]}\nYou: ")
        assert "tokens a second" in each["status"]


def test_an_answer_is_stopped_and_asked_for_again(packaged: Path) -> None:
    found = drive("stops", packaged)
    assert found["status"].startswith("cancelled: ")
    assert found["stopped"][1].count(" ") > 5
    assert len(found["retried"]) == 2
    assert found["retried"][0] == found["stopped"][0]
    question, answer = found["retried"]
    assert found["page"] == f"You: {question}\nModel: {answer}\n"


def test_closing_in_the_middle_of_an_answer_ends_all(packaged: Path) -> None:
    found = drive("closes", packaged)
    assert not psutil.pid_exists(found["pid"])


def test_closing_while_a_model_loads_ends_all(packaged: Path, tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert drive("closes_while_loading", packaged, **{CACHE_VARIABLE: str(tmp_path)})["loading"]
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not psutil.wait_procs(left, 5)[1]


def test_a_model_whose_process_dies_is_a_line_and_the_next_message_works(packaged: Path) -> None:
    found = drive("survives", packaged)
    assert "the model's process died: SIGKILL" in found["page"]
    assert found["said"][-2] == "Hello"


def test_a_file_that_would_end_the_process_is_a_line(deadly: Path) -> None:
    found = drive("refuses", deadly)
    assert "a trial run in a process of its own died of signal 6" in found["page"]
    assert found["can_open"]


def test_a_picture_that_is_dropped_is_shown_and_seen(llama4_digits: Path, tmp_path: Path) -> None:
    converters.convert(llama4_digits, tmp_path / "digits", quant="q8_0")
    found = drive("sees", tmp_path / "digits", ROOT / "docs" / "digits.png", tmp_path / "seen.png")
    assert found["is_accepted"]
    assert (found["said"], found["images"], found["parts"]) == ("left 5, right 4", 1, 2)


def test_the_program_asks_once_and_leaves(packaged: Path, deadly: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "examples" / "desktop" / "chat.py"), *map(str, arguments)],
            env={**os.environ, "QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    done = run(packaged, "--ask", "What is the capital of Japan?")
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr
    done = run(deadly, "--ask", "Hi")
    assert (done.returncode, done.stdout) == (2, "")
    assert "died of signal 6" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_is_short() -> None:
    lines = [path.read_text("utf-8").splitlines() for path in (ROOT / "examples" / "desktop").glob("*.py")]
    assert sum(map(len, lines)) < 250
