"""What `make test-arm64` stands on, as far as it needs no emulation."""

import sys
from pathlib import Path

import pytest
from arm64 import CLI, Checks, _lead, _noise
from arm64_root import ARCHITECTURES, CORE, PROCESSOR, Emulated, _once, _requirements

from edge_llama.host.processors import from_cpuinfo


def test_a_part_is_set_up_once_and_anew_where_it_should_be_another(tmp_path: Path) -> None:
    tries: list[str] = []

    def make() -> None:
        tries.append("made")
        (tmp_path / "part").mkdir()

    for key in ("1", "1", "2"):
        _once(tmp_path, "part", key, make)
    assert len(tries) == 2


def test_what_was_left_half_set_up_is_set_up_again(tmp_path: Path) -> None:
    def fail() -> None:
        (tmp_path / "part").mkdir()
        raise SystemExit("no network")

    with pytest.raises(SystemExit):
        _once(tmp_path, "part", "1", fail)
    _once(tmp_path, "part", "1", (tmp_path / "part").mkdir)


def test_the_engine_is_compiled_and_not_asked_for_as_a_wheel() -> None:
    wanted = _requirements()
    assert not any(each.startswith("llama-cpp-python") for each in wanted)
    assert any(each.startswith("onnxruntime") for each in wanted)
    assert any(each.startswith("numba") for each in wanted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_emulated_processor_is_told_by_its_name_and_features(architecture: str) -> None:
    features = ARCHITECTURES[architecture][1]
    name, told = from_cpuinfo(CORE.format(number=0, features=features) + CORE.format(number=1, features=features))
    assert name == PROCESSOR
    assert set(features.split()) < set(told)


def test_a_difference_is_told_and_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = Checks(Emulated(tmp_path, tmp_path / "engine"))
    checks.same("bytes", {"a": "1"}, {"a": "1"})
    checks.same("texts", "Paris", "London")
    assert checks.failed == ["texts"]
    assert capsys.readouterr().out == "same  bytes\nDIFFERS  texts\n  x86-64: Paris\n  ARM64:  London\n"


def test_texts_may_part_where_two_tokens_are_near() -> None:
    ours = {"tokens": [1, 2, 3], "tops": [[[1, -0.1], [5, -3.0]], [[2, -0.5], [9, -0.75]], [[3, -1.0], [4, -9.0]]]}
    assert _lead(ours, {"tokens": [1, 2, 3]}) is None
    assert _lead(ours, {"tokens": [1, 9, 3]}) == 0.25
    assert _lead(ours, {"tokens": [9, 2, 3]}) == pytest.approx(2.9)
    theirs = {"tokens": [1, 9, 3], "tops": [[[1, -0.3], [6, -2.0]], [[9, -0.6], [2, -0.7]], [[3, -3.0], [4, -9.0]]]}
    assert _noise(ours, theirs) == pytest.approx(0.2), "what comes after they part says nothing"
    assert _noise(ours, {"tokens": [9], "tops": [[[9, -5.0], [1, -6.0]]]}) == 0


def test_the_command_line_is_called_as_both_sides_have_it(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    assert "convert" in Checks(Emulated(tmp_path, tmp_path / "engine")).here([*CLI, "--help"])


def test_a_side_that_fails_ends_it_with_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    checks = Checks(Emulated(tmp_path, tmp_path / "engine"))
    assert checks.here(["-c", "print(input()[::-1])"], "siraP\n") == "Paris\n"
    with pytest.raises(SystemExit, match="no such model"):
        checks.here(["-c", "import sys; sys.exit('no such model')"])
    assert sys.executable in checks.here(["-c", "import sys; print(sys.executable)"])
