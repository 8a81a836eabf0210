"""Models on a real device of llama.cpp's: Vulkan by Mesa's software driver, where `make test-vulkan` built it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import converters
import edge_llama
from edge_llama import EngineError, OptionError
from edge_llama.backends.llama_cpp import offload

ROOT = Path(__file__).resolve().parents[3]
TALK, DIGITS = ROOT / "tests" / "data" / "small_talk.gguf", ROOT / "tests" / "data" / "llama4_digits"
ASKED, ANSWER = "What is the capital of Japan?", "The capital of Japan is Tokyo."

pytestmark = pytest.mark.skipif("EDGE_LLAMA_VULKAN" not in os.environ, reason="make test-vulkan runs it")


@pytest.fixture(scope="module")
def model() -> Iterator[edge_llama.Model]:
    with edge_llama.open(TALK, n_ctx=1024, device="vulkan") as opened:
        yield opened


def test_the_device_is_listed_although_a_verdict_without_it_is_remembered() -> None:
    without = {name: value for name, value in os.environ.items() if name != "GGML_VK_VISIBLE_DEVICES"}
    names = []
    for environment in (without, dict(os.environ)):
        command = [sys.executable, "-c", "from edge_llama.cli import main; main()", "devices", "--json"]
        told = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
        names.append([device["option"] for device in told["engines"][0]["devices"]])
    assert "vulkan:0" not in names[0], "the engine leaves out devices that compute on the processor"
    assert "vulkan:0" in names[1]


def test_all_layers_go_there_and_the_engine_says_so(model: edge_llama.Model) -> None:
    assert model.placement.gpu_layers == model.artifact.n_layer + 1
    assert "and the output on Vulkan0" in str(model.placement)
    assert model.chat().send(ASKED, temperature=0, max_tokens=32).result().text == ANSWER


@pytest.mark.parametrize("cpu_moe", [False, 1, True])
def test_strictly_all_is_there_but_the_experts_that_shall_stay(experts: Path, cpu_moe: int) -> None:
    with edge_llama.open(experts, n_ctx=64, device="vulkan", strict_device=True, cpu_moe=cpu_moe) as opened:
        assert opened.placement.found == f"layers 0 to {opened.artifact.n_layer - 1} and the output on Vulkan0"


def test_experts_that_stay_uninvited_are_refused(experts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "_is_astray", partial(_counting_experts, offload._is_astray))
    with pytest.raises(EngineError, match=r"the CPU computes ffn_moe_gate-0 \(MUL_MAT_ID\), .* leave --strict-device"):
        edge_llama.open(experts, n_ctx=64, device="vulkan", strict_device=True, cpu_moe=1)


def _counting_experts(is_astray: Any, node: str, first: int, _cpu_moe: int, output: int) -> bool:
    return bool(is_astray(node, first, 0, output))


def test_auto_measures_both_and_tells_what_it_found() -> None:
    with edge_llama.open(TALK, n_ctx=1024) as opened:
        assert "measured: vulkan:0 prompts" in opened.placement.reason
        assert "CPU prompts" in opened.placement.reason


@pytest.mark.parametrize(
    ("name", "problem"), [("vulkan:7", "there is no such; here are vulkan:0"), ("vulkan:0,vulkan:0", "named twice")]
)
def test_one_that_is_not_here_is_refused(name: str, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        edge_llama.open(TALK, device=name)


def test_a_session_of_the_cpu_is_read_again_and_that_is_told(model: edge_llama.Model, tmp_path: Path) -> None:
    with edge_llama.open(TALK, n_ctx=1024, device="cpu") as on_cpu:
        chat = on_cpu.chat()
        chat.send("Hello!", temperature=0, max_tokens=16).result()
        chat.save(tmp_path / "chat")
    resumed = model.resume_chat(tmp_path / "chat")
    assert "device was cpu and is vulkan:0" in (resumed.reread_reason or "")
    assert resumed.send(ASKED, temperature=0, max_tokens=32).result().text == ANSWER


def test_a_vision_tower_goes_there(tmp_path: Path) -> None:
    converters.convert(DIGITS, tmp_path / "digits", quant="f32", vision_to="gguf")
    with edge_llama.open(tmp_path / "digits", n_ctx=1024, device="cpu", vision_device="vulkan") as opened:
        assert opened.vision_placement
        assert opened.vision_placement.devices == ("Vulkan0",)
        chat = opened.chat()
        answer = chat.send("Which digits are these?", images=[ROOT / "docs" / "digits.png"], temperature=0).result()
        assert answer.text == "left 5, right 4"
