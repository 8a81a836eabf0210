"""Towers compiled for a device: by Qualcomm's QNN for its emulator and for phones, and by OpenVINO for its CPU."""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from engines import open_vision
from npu import digits, in_integers, needs
from qnn_binary import read_binary
from refusals import refusal
from static_text import in_integers as text_in_integers

import converters
import edge_llama
from edge_llama.backends.local_models import meant
from edge_llama.backends.onnxruntime import compiler, session, vision
from edge_llama.backends.onnxruntime.snapdragon import CHIPS
from edge_llama.backends.towers import read_towers, read_vision
from edge_llama.compile import compile_for
from edge_llama.errors import ArtifactError, EdgeLlamaError, OptionError, OutputError
from edge_llama.files.compiled import NAME, read_compiled
from edge_llama.files.manifest import NAME as MANIFEST
from edge_llama.files.vision_spec import VisionSpec

ASKED, SAID = "What is the capital of Japan?", "The capital of Japan is Tokyo."
DEVICES = [pytest.param("npu:qnn", marks=needs("qnn")), pytest.param("openvino:cpu", marks=needs("openvino"))]


@pytest.fixture(scope="module")
def small(small_talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in a form that both engines run."""
    return text_in_integers(small_talk, tmp_path_factory.mktemp("small"), portable=True)


@pytest.fixture
def model(small: Path, tmp_path: Path) -> Path:
    """A copy, in which things may be compiled."""
    return Path(shutil.copytree(small, tmp_path / "model"))


@pytest.fixture(scope="module")
def once(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, compiled for Qualcomm's emulator."""
    folder = Path(shutil.copytree(small, tmp_path_factory.mktemp("once") / "model"))
    compile_for(folder, "npu:qnn")
    return folder


@pytest.fixture
def built(once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(once, tmp_path / "built"))


@pytest.fixture(scope="module")
def sight(llama4_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision tower in integers."""
    spec = VisionSpec(tile=56, max_tiles=16, tokens_per_tile=4, n_embd=64)
    tiles = digits(spec, held_out=False, seed=1, count=6)
    return in_integers(llama4_digits, tmp_path_factory.mktemp("sight"), tiles) / "a16w8"


def answer(folder: Path, **options: Any) -> tuple[str, str]:
    """Where the tower is, and what it says."""
    with edge_llama.open(folder, n_ctx=256, threads=2, **options) as opened:
        return str(opened.placement), opened.chat().send(ASKED, temperature=0, max_tokens=16).result().text


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_opens_by_what_was_compiled_beside_it(device: str, model: Path) -> None:
    before = answer(model, device=device)
    done = compile_for(model, device)
    assert done.output == model / "compiled" / device.replace(":", "-")
    assert (done.device, done.soc, done.towers) == (device, "", ("text",))
    placement, text = answer(model, device=device)
    assert (before[1], text) == (SAID, SAID)
    assert "prompts: all 1 nodes on" in placement
    assert "tokens: all 1 nodes on" in placement
    assert answer(model)[0] == "CPU (the default)"  # the graphs are as they were


@pytest.mark.parametrize("device", DEVICES)
def test_what_was_compiled_is_a_model_of_its_own(device: str, model: Path, tmp_path: Path) -> None:
    """Copied alone, and without the graphs that it was compiled of."""
    alone = Path(shutil.copytree(compile_for(model, device).output, tmp_path / "alone"))
    shutil.rmtree(model)
    assert not {"prompt.onnx", "token.onnx", "decoder.onnx.data"} & {file.name for file in alone.rglob("*")}
    placement, text = answer(alone)
    assert text == SAID
    assert placement.startswith(f"{device} (it was compiled for that")
    assert read_towers(alone).manifest
    with refusal(OptionError, f"was compiled for {device}, and cpu can't run it; leave --device out"):
        answer(alone, device="cpu")
    with refusal(ArtifactError, "was compiled; compile the model that it was compiled of"):
        compile_for(alone, device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_vision_tower_is_compiled_too(
    device: str, sight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(sight, tmp_path / "sight"))
    pixels = digits(read_vision(folder).spec, held_out=True, seed=2, count=2)

    def encoded(at: Path) -> Any:
        with closing(open_vision(read_vision(at), threads=2, device=device)) as tower:
            return tower.encode(pixels)

    expected = encoded(folder)
    done = compile_for(folder, device)
    assert done.towers == ("vision",)
    tried: list[Path] = []
    require = vision.require
    monkeypatch.setattr(vision, "require", lambda tower, where: tried.append(tower.path) or require(tower, where))
    assert (encoded(folder) == expected).all()
    assert tried == [done.output / "vision" / "model_ctx.onnx"]
    assert "is not used" not in caplog.text
    for file in read_vision(folder).files:
        file.unlink()
    assert (encoded(done.output) == expected).all()


@needs("qnn")
def test_what_fits_stays_and_what_does_not_is_compiled_again(
    built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = built / "compiled" / "npu-qnn" / NAME
    written = record.stat().st_mtime_ns
    compile_for(built, "npu:qnn")
    assert record.stat().st_mtime_ns == written
    compile_for(built, "npu:qnn", force=True)
    assert record.stat().st_mtime_ns != written
    content = json.loads(record.read_text())
    for change in (
        {"package": "onnxruntime-qnn 1.0"},
        {"sources": {**content["sources"], "text": "another"}},
        {"machine": "vax"},
    ):
        record.write_text(json.dumps({**content, **change}))
        with caplog.at_level(logging.WARNING):
            assert answer(built, device="npu:qnn")[1] == SAID
        assert "it is compiled again" in caplog.text
        assert json.loads(record.read_text()) == content
        caplog.clear()
    record.write_text(json.dumps({**content, "package": "onnxruntime-qnn 1.0"}))
    monkeypatch.setattr(compiler, "new_folder", _full)
    with caplog.at_level(logging.WARNING):
        placement, text = answer(built, device="npu:qnn")
    assert text == SAID
    assert "all 1 nodes" not in placement
    assert "is not used, the model's own graphs are: " in caplog.text


def _full(_path: Path) -> Any:
    raise OSError(28, "No space left on device")


@needs("qnn")
def test_for_a_phone_the_context_is_for_its_chip(model: Path) -> None:
    """As Qualcomm's own library reads it back."""
    here = compile_for(model, "npu:qnn").output
    assert read_binary(here / "token_ctx_qnn.bin").soc_model == 0
    done = compile_for(model, "npu:qnn", soc="sm8650", provider_options=["htp_performance_mode=burst"])
    assert done.output.name == "npu-qnn-sm8650"
    assert done.soc == "SM8650"
    for graph in ("prompt", "token"):
        assert read_binary(done.output / f"{graph}_ctx_qnn.bin").soc_model == CHIPS["SM8650"].soc_model == 57
    settings = json.loads((done.output / "genai_config.json").read_text())["model"]["decoder"]["pipeline"][0]
    told = {"backend_type": "htp", "htp_performance_mode": "burst"}
    for stage in ("prompt", "token"):
        assert settings[stage]["filename"] == f"{stage}_ctx.onnx"
        assert settings[stage]["session_options"]["provider_options"] == [{"QNN": told}]
    assert not settings["inputs"]["session_options"]["provider_options"]
    with refusal(ArtifactError, "was compiled for SM8650, this is .*; copy it to a machine with that chip, or"):
        answer(done.output)


@needs("qnn")
def test_for_a_phone_two_graphs_may_have_their_weights_in_one_file(model: Path) -> None:
    apart = compile_for(model, "npu:qnn", soc="SM8750").output
    sizes = [file.stat().st_size for file in apart.glob("*.bin")]
    assert len(sizes) == 2
    shared = compile_for(model, "npu:qnn", soc="SM8750", share=True)
    (binary,) = shared.output.glob("*.bin")
    assert binary.stat().st_size < sum(sizes)
    assert read_binary(binary).graphs == 2
    record = read_compiled(shared.output)
    assert record
    assert record.shares
    with refusal(OptionError, "--share: .* name the phone's chip .--soc."):
        compile_for(model, "npu:qnn", share=True)


@needs("qnn")
def test_a_model_in_parts_is_compiled_part_by_part(small_talk: Path, tmp_path: Path) -> None:
    """As one is that is larger than a context may be."""
    model = text_in_integers(small_talk, tmp_path, max_shard_bytes=1)
    assert answer(model, device="npu:qnn")[1] == SAID
    done = compile_for(model, "npu:qnn")
    assert len(list(done.output.glob("*_ctx_qnn.bin"))) == 4
    placement, text = answer(done.output)
    assert text == SAID
    assert placement.count("all 1 nodes on QNNExecutionProvider") == 4
    shared = compile_for(model, "npu:qnn", soc="SM8650", share=True).output
    assert [read_binary(file).graphs for file in shared.glob("*.bin")] == [2, 2]


def _cut(folder: Path) -> None:
    file = next(folder.glob("*.bin"))
    file.write_bytes(file.read_bytes()[:-1000])


def _cut_and_zeroed(folder: Path) -> None:
    """As long as the manifest says. Qualcomm's engine takes it, and answers nothing."""
    for file in folder.glob("*.bin"):
        raw = file.read_bytes()
        file.write_bytes(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))


def _noise(folder: Path) -> None:
    for file in folder.glob("*.bin"):
        file.write_bytes(b"\xa5" * file.stat().st_size)


def _noise_without_hashes(folder: Path) -> None:
    _noise(folder)
    (folder / MANIFEST).unlink()


def _missing(folder: Path) -> None:
    next(folder.glob("*.bin")).unlink()


def _of_another_version(folder: Path) -> None:
    record = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**record, "package": "onnxruntime-qnn 1.0.0"}))
    (folder / MANIFEST).unlink()


def _of_another_machine(folder: Path) -> None:
    record = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**record, "machine": "vax"}))
    (folder / MANIFEST).unlink()


def _no_record(folder: Path) -> None:
    (folder / NAME).write_bytes((folder / NAME).read_bytes()[:-9])
    (folder / MANIFEST).unlink()


@needs("qnn")
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "_qnn.bin' has .* bytes instead of"),
        (_missing, "_qnn.bin' is missing"),
        (_cut_and_zeroed, "_ctx_qnn.bin: is not as it was written; compile the model again: edge-llama compile MODEL"),
        (_noise, "_ctx_qnn.bin: is not as it was written; compile the model again"),
        (_noise_without_hashes, "prompt_ctx.onnx: .*, or compile the model again: edge-llama compile MODEL"),
        (_of_another_version, r"was compiled by onnxruntime-qnn 1.0.0, and here is .*; compile the model again"),
        (_of_another_machine, "was compiled for vax, this is .*; compile the model again"),
        (_no_record, "compiled.json: not valid JSON"),
    ],
)
def test_a_context_that_can_not_be_opened_is_a_typed_error(
    damage: Callable[[Path], None], says: str, once: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(once / "compiled" / "npu-qnn", tmp_path / "alone"))
    damage(alone)
    with pytest.raises(EdgeLlamaError, match=says):
        answer(alone, device="npu:qnn")


@needs("qnn")
@pytest.mark.parametrize("damage", [_cut, _cut_and_zeroed, _noise, _missing, _no_record])
def test_beside_a_model_it_is_told_and_the_model_opens(
    damage: Callable[[Path], None], built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(built / "compiled" / "npu-qnn")
    with caplog.at_level(logging.WARNING):
        placement, text = answer(built, device="npu:qnn")
    assert text == SAID
    assert "all 1 nodes" not in placement
    assert "is not used, the model's own graphs are: " in caplog.text


@needs("qnn")
def test_what_lies_beside_the_graphs_is_compiled_anew_when_it_changes(
    built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = built / "compiled" / "npu-qnn"
    for file in (built / MANIFEST, output / MANIFEST):
        file.unlink()
    content = json.loads((built / "tokenizer_config.json").read_text())
    (built / "tokenizer_config.json").write_text(json.dumps({**content, "odd": 1}))
    with caplog.at_level(logging.WARNING):
        assert "all 1 nodes" in answer(built, device="npu:qnn")[0]
    assert "it is compiled again" in caplog.text
    assert json.loads((output / "tokenizer_config.json").read_text())["odd"] == 1


@needs("qnn")
def test_two_at_once_write_one_after_the_other(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds what the first wrote."""
    compiled: list[object] = []
    work = compiler._in_a_child
    monkeypatch.setattr(compiler, "_in_a_child", lambda graphs, where: compiled.append(graphs) or work(graphs, where))
    with ThreadPoolExecutor(2) as pool:
        outputs = {done.output for done in pool.map(lambda _: compile_for(model, "npu:qnn"), range(2))}
    assert len(outputs) == 1
    assert len(compiled) == 2
    assert answer(outputs.pop())[1] == SAID


REFUSED: dict[str, tuple[Callable[[Path], object], type[EdgeLlamaError], str]] = {
    "no such chip": (
        lambda model: compile_for(model, "npu:qnn", soc="M1"),
        OptionError,
        "--soc M1: unknown; known: SM8350",
    ),
    "a device that compiles nothing": (
        lambda model: compile_for(model, "cpu"),
        OptionError,
        "device cpu: nothing is compiled for it; known: openvino:cpu",
    ),
    "a chip by hand": (
        lambda model: compile_for(model, "npu:qnn", provider_options=["soc_model=57"]),
        OptionError,
        "provider option soc_model: device npu:qnn takes no such",
    ),
    "no device": (lambda model: compile_for(model, "toaster"), OptionError, "device toaster: unknown"),
    "no provider's option": (
        lambda model: compile_for(model, "npu:qnn", provider_options=["speed=9"]),
        OptionError,
        "provider option speed: device npu:qnn takes no such; known: htp_performance_mode",
    ),
    "no option at all": (
        lambda model: compile_for(model, "npu:qnn", provider_options=["fast"]),
        OptionError,
        "provider option fast: expected KEY=VALUE",
    ),
}


@needs("qnn")
@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_compiled_is_told_and_nothing_is_written(name: str, model: Path) -> None:
    act, error, says = REFUSED[name]
    with pytest.raises(error, match=says):
        act(model)
    assert not (model / "compiled").exists() or not list((model / "compiled").iterdir())


@needs("qnn")
def test_a_model_for_cpus_and_a_full_disk(small_talk: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusal(ArtifactError, "a file, and what is compiled lies in the model's folder; convert the checkpoint"):
        compile_for(small_talk, "npu:qnn")
    monkeypatch.setattr(compiler, "new_folder", _full)
    with refusal(OutputError, "cannot be written: No space left on device"):
        compile_for(model, "npu:qnn")


@needs("qnn")
def test_it_goes_with_its_model(small_talk: Path, built: Path) -> None:
    """A model that is converted again takes it along, but nothing that a person put there."""
    mine = built / "compiled" / "npu-qnn" / "notes.txt"
    mine.write_text("mine")
    again: dict[str, Any] = {"to": "onnx", "quant": "int8", "force": True}
    with refusal(OutputError, "holds 'compiled/npu-qnn/notes.txt', which --force would delete"):
        converters.convert(small_talk, built, **again)
    mine.unlink()
    converters.convert(small_talk, built, **again)
    assert not (built / "compiled").exists()


@needs("qnn")
def test_it_is_no_model_more(built: Path) -> None:
    """Where a folder without a manifest is searched for models."""
    (built / MANIFEST).unlink()
    assert [found.path for found in meant(built)] == [built]


@needs("openvino")
def test_operators_that_the_engine_has_not_are_named(static_folder: Path, tmp_path: Path) -> None:
    """OpenVINO has no RMSNormalization, which --portable takes apart."""
    model = Path(shutil.copytree(static_folder, tmp_path / "model"))
    with refusal(OptionError, "OpenVINOExecutionProvider does not run .* of its nodes: .*norm.*; convert"):
        compile_for(model, "openvino:cpu")
    assert [entry.name for entry in (model / "compiled").iterdir()] == [".openvino-cpu.lock"]


@needs("qnn")
def test_a_tower_is_told_what_its_own_device_takes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    add = session.add
    monkeypatch.setattr(session, "add", lambda there, options, texts: told.append(texts) or add(there, options, texts))
    placement, text = answer(model, device="npu:qnn", provider_options=["htp_performance_mode=burst"])
    assert text == SAID
    assert placement.startswith("npu:qnn")
    assert told == [("htp_performance_mode=burst",)] * 2
    with refusal(OptionError, "provider option htp_performance_mode: device cpu takes no such; npu:qnn and"):
        answer(model, device="cpu", provider_options=["htp_performance_mode=burst"])
    with edge_llama.open(model, n_ctx=256, device="npu:qnn", isolate=True, provider_options=["vtcm_mb=4"]) as opened:
        assert opened.chat().send(ASKED, temperature=0, max_tokens=16).result().text == SAID
