"""Text towers for NPUs on what stands in for them: Qualcomm's emulator of the HTP, and OpenVINO's CPU device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from device_inputs import DIGITS, pictures
from llama4_training import dialogues
from npu import digits, in_integers, needs
from static_text import in_integers as text_in_integers

import converters
import edge_llama
from edge_llama.errors import EngineError

QUESTIONS = ("What is the capital of Japan?", "Thanks!", "Say 5.")
ANSWERS = ("The capital of Japan is Tokyo.", "You are welcome.", "5")


def answers(folder: Path, device: str, questions: Sequence[str] = QUESTIONS) -> tuple[str, list[edge_llama.Answer]]:
    """Where the tower is said to be, and greedy answers."""
    with edge_llama.open(folder, n_ctx=256, threads=2, device=device) as model:
        chats = [model.chat().send(question, temperature=0, max_tokens=16) for question in questions]
        return str(model.placement), [each.result() for each in chats]


@pytest.fixture(scope="module")
def forms(small_talk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small model in each form."""
    folder = tmp_path_factory.mktemp("forms")
    found: dict[str, Path] = {}
    for name, quant, options in (
        ("a16w8", "a16w8", {}),
        ("a16w4", "a16w4", {}),
        ("portable a16w8", "a16w8", {"portable": True}),
        ("portable a16w4", "a16w4", {"portable": True}),
        ("a16w8 with a cache in 16 bits", "a16w8", {"kv_bits": 16}),
    ):
        (folder / name).mkdir()
        found[name] = text_in_integers(small_talk, folder / name, quant, **options)
    return found


@pytest.mark.parametrize(
    ("form", "device"),
    [
        pytest.param("a16w8", "npu:qnn", marks=needs("qnn")),
        pytest.param("a16w4", "npu:qnn", marks=needs("qnn")),
        pytest.param("portable a16w8", "npu:qnn", marks=needs("qnn")),
        pytest.param("portable a16w8", "openvino:cpu", marks=needs("openvino")),
        pytest.param("portable a16w4", "openvino:cpu", marks=needs("openvino")),
        pytest.param("a16w8 with a cache in 16 bits", "npu:qnn", marks=needs("qnn")),
        ("a16w8 with a cache in 16 bits", "cpu"),
        ("a16w8", "cpu"),
        ("a16w4", "cpu"),
    ],
)
def test_all_nodes_are_there_and_answers_are_the_same(form: str, device: str, forms: dict[str, Path]) -> None:
    placement, found = answers(forms[form], device)
    assert tuple(answer.text for answer in found) == ANSWERS
    if device != "cpu":
        assert placement.count("all ") == 2
        assert "on the CPU" not in placement


@needs("openvino")
def test_what_openvino_has_no_operator_for_is_refused(forms: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="OpenVINOExecutionProvider does not run it"):
        answers(forms["a16w4"], "openvino:cpu")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama 4 that reads digits: both towers in integers."""
    import numpy as np  # noqa: PLC0415

    from edge_llama.cli.ranges import measure_ranges  # noqa: PLC0415
    from edge_llama.files.manifest import read_manifest  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("seeing")
    converters.convert(DIGITS, folder / "float", tower="vision", vision_quant="f32")
    spec = read_manifest(folder / "float").images
    assert spec
    vision = in_integers(DIGITS, folder, digits(spec, held_out=False, seed=5, count=6)) / "ranges.json"
    data, rng = [], np.random.default_rng(3)
    for number in range(9):
        turn = dialogues(("single", "across", "stacked")[number % 3], 1, rng)[0].turns[0]
        (folder / f"{number}.txt").write_text(
            f"{turn.question}<|eot|><|header_start|>assistant<|header_end|>\n\n{turn.answer}<|eot|>" * 3
        )
        data.append(folder / f"{number}.txt")
        for picture in turn.pictures:
            edge_llama.Image.open(picture).to_pillow().save(folder / f"{number}.png")
            data.append(folder / f"{number}.png")
    measure_ranges(str(DIGITS), data, folder / "text.json", max_tiles=None, threads=2, quiet=True)
    options: dict[str, Any] = {"to": "onnx", "quant": "a16w8", "vision_quant": "a16w8", "n_ctx": 256, "window": 32}
    converters.convert(DIGITS, folder / "both", calibration=[folder / "text.json", vision], **options)
    return folder / "both"


@pytest.mark.parametrize(("device", "count"), [("cpu", 9), pytest.param("npu:qnn", 1, marks=needs("qnn"))])
def test_a_llama_4_answers_about_pictures_with_both_towers_in_integers(device: str, count: int, seeing: Path) -> None:
    asked = list(pictures())[-count:]
    with edge_llama.open(seeing, n_ctx=256, threads=2, device=device, vision_device=device) as model:
        for each in asked:
            chat = model.chat()
            assert chat.send(each.question, images=[each.image], temperature=0).result().text == each.answer
