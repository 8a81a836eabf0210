"""The device check, small, on the CPU: what it finds, and that nothing of it stops the rest."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from device_check import QUICK, in_child, main, table
from device_checks import FORMS, Row, Setup, agreement, compared, conversions_of, job_of, margin_of, run
from device_inputs import make
from npu import needs

from edge_llama import Answer, Timings, TokenLogprobs
from edge_llama.backends.base import Placement
from edge_llama.sampling.logprobs import Alternative

ON_GGUF = ("text", "vision", "sessions", "speed", "callers", "memory")
CASES = [*((check, "gguf") for check in ON_GGUF), *((check, "onnx") for check in ("text", "sessions"))]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    names = ("text.gguf", "text-onnx", "digits-gguf", "speed.gguf", "speed-onnx")
    return {name: str(make(name, folder, is_quick=True)) for name in names}


@pytest.mark.parametrize(("check", "form"), CASES)
def test_a_check_passes_on_the_cpu(check: str, form: str, inputs: dict[str, str]) -> None:
    row = run(check, Setup("cpu", FORMS[form], inputs, QUICK))
    assert row.outcome == "ok", row.told
    assert row.figures


def test_a_resumed_session_goes_on_with_its_cache(inputs: dict[str, str]) -> None:
    row = run("sessions", Setup("cpu", FORMS["gguf"], inputs, QUICK))
    assert row.figures["cpu to cpu"]["known"] > 10
    assert "the same answer" in row.told


def test_what_a_device_does_not_do_is_left_out(inputs: dict[str, str]) -> None:
    assert run("part", Setup("cpu", FORMS["gguf"], inputs, QUICK)).outcome == "left out"
    assert run("callers", Setup("cpu", FORMS["onnx"], inputs, QUICK)).told == "the engine serves one after the other"


@needs("qnn")
def test_text_runs_on_npus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "npu:qnn", "--checks", "text", "speed", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert "| text, ONNX in integers | ok |" in shown
    assert "| speed, ONNX in integers | left out | not measured" in shown


def test_a_missing_device_is_a_failed_row_with_the_remedy(inputs: dict[str, str]) -> None:
    row = run("text", Setup("gpu", FORMS["gguf"], inputs, QUICK))
    assert row.outcome == "failed"
    assert "edge-llama devices" in row.told


@pytest.mark.skipif(sys.platform == "darwin", reason="it can't have such a device")
def test_an_engine_that_lacks_the_device_is_left_out_with_the_command_that_brings_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--device", "cuda", "--checks", "text"]) == 1, "it did nothing"
    told = capsys.readouterr().out
    assert (
        '| GGUF | left out | llama.cpp has none: (an NVIDIA GPU and the CUDA toolkit) CMAKE_ARGS="-DGGML_CUDA' in told
    )
    assert "| ONNX | left out | ONNX Runtime has none: pip uninstall onnxruntime; pip install onnxruntime-gpu" in told


def test_a_part_of_the_layers_is_not_the_device() -> None:
    setup = Setup("gpu", FORMS["gguf"], {}, QUICK)
    part = Placement(3, "as many as fit", "cuda:0", ("CUDA0",))
    assert compared(setup, "text", [answer(1)], [answer(1)], part, 5).told.endswith(": not all 5 layers are there")
    assert compared(setup, "text", [answer(1)], [answer(1)], replace(part, gpu_layers=5), 5).outcome == "ok"


def answer(*tokens: int, lead: float = 0.005) -> Answer:
    """At each place its token leads 7 by ``lead``, and all others by 5."""
    entries = tuple(
        TokenLogprobs(token, -0.1, tuple(Alternative(*each) for each in ((token, -0.1), (7, -0.1 - lead), (8, -5.1))))
        for token in tokens
    )
    return Answer("", tokens, Timings(), "length", entries)


def test_answers_part_at_the_margin_of_the_two_tokens() -> None:
    assert margin_of(answer(1, 2), answer(1, 2)) is None
    assert margin_of(answer(1, 2), answer(1, 7)) == pytest.approx(0.005)
    assert margin_of(answer(1, 2), answer(1, 8)) == pytest.approx(5)
    assert margin_of(answer(1, 2), answer(1, 99)) == pytest.approx(5), "at least as far as the last that is known"
    assert margin_of(answer(1, 2), answer(1)) == pytest.approx(0.005), "it ended where the other went on"


def test_only_near_ties_may_part() -> None:
    near, far = agreement("text", 20, [0.009], 0.01, "there"), agreement("text", 20, [0.009, 0.01], 0.01, "there")
    assert (near.outcome, far.outcome) == ("ok", "failed")
    assert near.told.startswith("19 of 20 greedy answers the CPU's, the others part at margins up to 0.009")


def test_a_process_that_dies_or_hangs_is_a_failed_row(inputs: dict[str, str]) -> None:
    died = in_child("text, GGUF", "no JSON", 60)
    assert (died.outcome, died.told.startswith("its process ended with 1: ")) == ("failed", True)
    hung = in_child("text, GGUF", job_of("text", "cpu", "gguf", inputs, QUICK), 0.05)
    assert (hung.outcome, hung.told.startswith("stopped: ")) == ("failed", True)
    assert in_child("text, GGUF", "", -1).told == "not begun: the time was up"


def test_a_conversion_that_hangs_is_stopped_and_one_that_fails_is_named(tmp_path: Path) -> None:
    hung = in_child("conversions", conversions_of(["text.gguf"], tmp_path, is_quick=True), 0.05)
    assert (hung.outcome, hung.told.startswith("stopped: ")) == ("failed", True)
    (tmp_path / "text.gguf").mkdir()
    failed = in_child("conversions", conversions_of(["text.gguf", "no such"], tmp_path, is_quick=True), 60)
    assert failed.outcome == "failed"
    assert "text.gguf: OutputError" in failed.told
    assert "no such: KeyError" in failed.told


def test_the_whole_run_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--quick", "--json", "--checks", "text"]) == 0
    shown = capsys.readouterr()
    found = {row["check"]: row["outcome"] for row in json.loads(shown.out)["rows"]}
    assert found == {"conversions": "ok", "text, GGUF in f32": "ok", "text, ONNX in f32": "ok"}
    assert not shown.err, "no terminal, no progress"


def test_one_failed_check_makes_the_run_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--quick", "--checks", "text", "--seconds", "0"]) == 1
    assert "| text, GGUF | failed | not begun: the time was up |" in capsys.readouterr().out


def test_a_device_that_cannot_be_named_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "toaster"]) == 2
    assert "known: auto, gpu, npu, cpu" in capsys.readouterr().err


def test_the_table_is_markdown() -> None:
    machine = {"cpu": "A CPU", "system": "Linux", "engines": {"llama.cpp": "1", "other": None}, "devices": ["A GPU"]}
    shown = table({"device": "vulkan", "machine": machine, "seconds": 9.6}, [Row("text", "ok", "1 | 2\nof 3")])
    assert shown.splitlines()[0] == "`vulkan` (A GPU, A CPU, Linux, llama.cpp 1), 10 s:"
    assert shown.splitlines()[-1] == "| text | ok | 1 / 2 of 3 |"
