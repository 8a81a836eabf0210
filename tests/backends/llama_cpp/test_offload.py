"""A placement as llama.cpp takes it and keeps it. The engine's own CPU stands for a GPU: it is a device like others."""

import ctypes
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edge_llama
from edge_llama import ArtifactError, EngineError
from edge_llama.backends import device_trial
from edge_llama.backends.base import AskedDevice, CacheSize, OneSequence, Placement
from edge_llama.backends.device_trial import Speed
from edge_llama.backends.llama_cpp import build_probe, devices, gpus, offload, text
from edge_llama.backends.llama_cpp.engine import ENGINE
from edge_llama.backends.llama_cpp.gpus import Sizes
from edge_llama.backends.llama_cpp.text import LlamaCppTower, the_engine
from edge_llama.backends.llama_cpp.tiny_models import tiny_tower
from edge_llama.backends.llama_cpp.vision import LlamaCppVision
from edge_llama.files.gguf_text import GGUFArtifact, read_gguf_text
from edge_llama.files.mmproj import read_mmproj
from edge_llama.host.user_cache import CACHE_VARIABLE

ON_CPU = Placement(0, "as asked")


def on_the_cpus_own(artifact: GGUFArtifact, *, cpu_moe: int = 0, is_strict: bool = False) -> Placement:
    """All layers on llama.cpp's device CPU, as if it were a GPU."""
    return Placement(artifact.n_layer + 1, "a test", "cpu:0", ("CPU",), cpu_moe=cpu_moe, is_strict=is_strict)


def opened(artifact: GGUFArtifact, placement: Placement) -> LlamaCppTower:
    cache = CacheSize.of_one(64)
    return LlamaCppTower(artifact, cache=cache, threads=1, flash_attention=False, kv_format="f16", placement=placement)


def test_layers_and_nodes_are_read_back_and_shown(small_talk: Path, caplog: pytest.LogCaptureFixture) -> None:
    artifact = read_gguf_text(small_talk)
    tower = opened(artifact, on_the_cpus_own(artifact))
    assert tower.placed.startswith(f"layers 0 to {artifact.n_layer - 1} and the output on CPU; the CPU computes ")
    assert "-0 (" in tower.placed  # nodes of the first layer, by their names and operations
    assert "device cpu:0: the CPU computes" in caplog.text  # never in silence
    tower.close()


def test_strictly_what_the_cpu_computes_is_an_error_that_names_it(small_talk: Path) -> None:
    artifact = read_gguf_text(small_talk)
    with pytest.raises(EngineError, match=r"device cpu:0: the CPU computes .*-0 \(.* more; .*--strict-device"):
        opened(artifact, on_the_cpus_own(artifact, is_strict=True))


def test_a_placement_changes_no_answer(small_talk: Path, experts: Path) -> None:
    for path, cpu_moe in ((small_talk, 0), (experts, 1), (experts, 4)):
        artifact = read_gguf_text(path)
        rows = []
        prompts = Placement(0, "a test", "cpu:0", ("CPU",), is_for_prompts=True)
        for placement in (ON_CPU, on_the_cpus_own(artifact, cpu_moe=cpu_moe), prompts):
            tower = opened(artifact, placement)
            rows.append(OneSequence(tower).decode([1, 2, 3]).values.copy())
            tower.close()
        assert (rows[0] == rows[1]).all()
        assert (rows[0] == rows[2]).all()


def test_on_the_cpu_nothing_is_read_back(small_talk: Path) -> None:
    tower = opened(read_gguf_text(small_talk), ON_CPU)
    assert tower.placed == ""
    assert tower.settings["device"] == "cpu"
    tower.close()


def test_a_device_that_is_gone_is_an_error(small_talk: Path) -> None:
    artifact = read_gguf_text(small_talk)
    with pytest.raises(EngineError, match="the device CUDA7 is gone; edge-llama devices lists"):
        opened(artifact, replace(on_the_cpus_own(artifact), devices=("CUDA7",)))


def test_shares_and_experts_reach_llama_cpp() -> None:
    lib = the_engine()
    options = lib.llama_model_default_params()
    placement = Placement(5, "", "cpu:0", ("CPU",), "row", (3.0, 1.0), cpu_moe=2)
    kept = offload.apply(placement, options, lib)
    assert (options.n_gpu_layers, options.split_mode) == (5, lib.LLAMA_SPLIT_MODE_ROW)
    assert (options.tensor_split[0], options.tensor_split[1], options.tensor_split[2]) == (3.0, 1.0, 0.0)
    pointers = ctypes.cast(options.devices, ctypes.POINTER(ctypes.c_void_p))
    assert (pointers[0], pointers[1]) == (devices.pointer_of("CPU"), None)
    patterns = [each.pattern for each in kept[-1]]
    assert patterns == [
        rb"blk\.0\.ffn_(up|down|gate|gate_up)_(ch|)exps",
        rb"blk\.1\.ffn_(up|down|gate|gate_up)_(ch|)exps",
        None,
    ]


THERE = {6: "CUDA0"}
HALF = Placement(3, "", "cuda:0", ("CUDA0",), cpu_moe=4)


@pytest.mark.parametrize(
    ("layers", "nodes", "problem"),
    [
        ({3: "CPU", 4: "CUDA0", 5: "CUDA0", 6: "CUDA0"}, ["ffn_out-3 (MUL_MAT)", "inp_embd (GET_ROWS)"], ""),
        ({4: "CUDA0", 5: "CPU"}, [], "layers on the CPU: 5"),
        ({4: "Meta(CUDA0)", 5: "Meta(CUDA0,CUDA1)"}, [], "layers on the CPU: 5"),
        ({}, [], "llama.cpp does not say where its layers are"),
        ({4: "CUDA0"}, ["kq_soft_max-5 (SOFT_MAX)"], "the CPU computes kq_soft_max-5 (SOFT_MAX)"),
        (THERE, ["result_output (MUL_MAT)"], "the CPU computes result_output (MUL_MAT)"),
        (THERE, ["ffn_moe_out-3 (ADD)", "node_7 (ADD)"], ""),
        (THERE, [f"norm-{at} (RMS_NORM)" for at in (4, 5) for _ in range(4)], "norm-5 (RMS_NORM) and 3 more"),
    ],
)
def test_what_is_not_where_it_should_be_is_named(layers: dict[int, str], nodes: list[str], problem: str) -> None:
    found = offload.astray(HALF, layers, nodes, output=6)
    assert found == problem or (problem.endswith("more") and found.endswith(problem))


def test_where_all_goes_to_the_device_no_node_is_left_out() -> None:
    whole = Placement(7, "", "cuda:0", ("CUDA0",))
    assert "node_7" in offload.astray(whole, THERE, ["node_7 (ADD)"], output=6)
    for node in ("embd (GET_ROWS)", "pos_embd (GET_ROWS)", "inp_scaled (SCALE)"):
        assert not offload.astray(whole, THERE, [node], output=6)


def test_experts_that_stay_are_where_they_should_be() -> None:
    everything = Placement(7, "", "cuda:0", ("CUDA0",), cpu_moe=2)
    assert offload.astray(everything, THERE, ["ffn_moe_gate-1 (MUL_MAT_ID)"], output=6) == ""
    for node in ("ffn_moe_gate-2", "Kcur-1", "ffn_up-1"):  # the last is the shared expert's, which goes there
        assert node in offload.astray(everything, THERE, [f"{node} (MUL_MAT)"], output=6)


@pytest.mark.parametrize("device", ["CUDA0", "Meta(CUDA0,CUDA1)"])
def test_the_log_tells_the_device_of_a_layer(device: str) -> None:
    with offload.assignments() as layers:
        offload.heard(f"load_tensors: layer   7 assigned to device {device}, is_swa = 0")
    assert layers == {7: device}


def test_layers_are_told_in_spans() -> None:
    layers = {0: "CPU", 1: "CUDA0", 2: "CUDA0", 3: "CUDA1", 4: "CUDA1"}
    assert offload.described(layers, 4) == "layers 0 on CPU, 1 to 2 on CUDA0, 3 and the output on CUDA1"
    assert offload.described({}, 4) == ""


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script as interpreter")
def test_a_speed_is_measured_once_for_all_that_it_depends_on(
    small_talk: Path, empty_cache: Path, broken_interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, found = read_gguf_text(small_talk), {"build": build_probe.build(), "devices": ["CPU"]}
    auto, named = AskedDevice(), AskedDevice("cuda:0")
    speed = device_trial.measured(artifact, ON_CPU, found, auto)
    assert isinstance(speed, Speed)
    assert speed.prompt > 0 < speed.answer
    monkeypatch.setattr(sys, "executable", broken_interpreter)
    assert device_trial.measured(artifact, replace(ON_CPU, reason="other words"), found, auto) == speed
    assert device_trial.measured(artifact, on_the_cpus_own(artifact), found, auto) == "died of signal 11"
    assert device_trial.measured(artifact, ON_CPU, {**found, "devices": []}, auto) == "died of signal 11"
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    assert device_trial.measured(artifact, ON_CPU, found, auto) == "died of signal 11"
    monkeypatch.undo()
    monkeypatch.setenv(CACHE_VARIABLE, str(empty_cache))
    there = on_the_cpus_own(artifact)
    remembered = "died of signal 11 (within the last day: --device cpu:0 tries again)"
    assert device_trial.measured(artifact, there, found, auto) == remembered
    tomorrow = time.time() + 90_000
    with monkeypatch.context() as later:
        later.setattr(device_trial.time, "time", lambda: tomorrow)
        later.setattr(sys, "executable", broken_interpreter)
        assert device_trial.measured(artifact, there, found, auto) == "died of signal 11", "it was tried again"
    assert isinstance(device_trial.measured(artifact, there, found, named), Speed)
    assert isinstance(device_trial.measured(artifact, there, found, auto), Speed), "what is found out later counts"


def test_a_damaged_file_is_not_blamed_on_the_device(
    small_talk: Path, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cut.gguf").write_bytes(small_talk.read_bytes())
    artifact = read_gguf_text(tmp_path / "cut.gguf")
    os.truncate(tmp_path / "cut.gguf", artifact.weight_bytes // 2)
    with pytest.raises(ArtifactError, match=r"cut\.gguf: "):
        device_trial.measured(artifact, on_the_cpus_own(artifact), {}, AskedDevice("cuda"))


def test_embedding_models_stay_on_the_cpu_unless_a_device_is_named(bert: Path, as_a_gpu: None) -> None:
    artifact = ENGINE.read(bert)
    assert str(ENGINE.place(artifact, AskedDevice(), 1)) == "CPU (the default of embedding models)"
    assert ENGINE.place(artifact, AskedDevice("cuda"), 1).gpu_layers == artifact.n_layer + 1


FAILING = """
import importlib.util, sys
real = {real!r}
spec = importlib.util.spec_from_file_location("llama_cpp", real, submodule_search_locations=[{folder!r}])
module = importlib.util.module_from_spec(spec)
sys.modules["llama_cpp"] = module
spec.loader.exec_module(module)
decode, prompts = module.llama_decode, []

def second_fails(context, batch):
    if batch.n_tokens == 128:
        prompts.append(batch)
    return -3 if prompts and batch.n_tokens == 1 else decode(context, batch)

module.llama_decode = second_fails
"""


def test_a_driver_that_fails_at_its_second_call_is_an_error_and_auto_leaves_it(
    small_talk: Path,
    empty_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = Path(the_engine().__file__)
    (tmp_path / "broken" / "llama_cpp").mkdir(parents=True)
    program = FAILING.format(real=str(real), folder=str(real.parent))
    (tmp_path / "broken" / "llama_cpp" / "__init__.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path / "broken")
    artifact = read_gguf_text(small_talk)
    said = device_trial.measured(artifact, ON_CPU, {}, AskedDevice())
    assert isinstance(said, str)
    assert "failed: llama.cpp failed at position 128 with status -3" in said
    gpu = [replace(devices.engine_devices()[0], kind="gpu", backend="CUDA", free_bytes=1 << 40, total_bytes=1 << 40)]
    sizes = Sizes((1,), 1, 1)
    with pytest.raises(EngineError, match=r"device cuda:0: a trial .* failed at position 128 with status -3; for CUDA"):
        gpus.place(AskedDevice("cuda"), gpu, sizes, lambda _: said)
    assert "cuda:0 is not used" in gpus.place(AskedDevice("auto"), gpu, sizes, lambda _: said).reason
    assert "cuda:0 is not used: a trial in a process of its own failed" in caplog.text, "never in silence"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_cache_that_cannot_be_written_is_told_with_the_remedy(
    small_talk: Path, empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty_cache.write_text("a file where the folder should be")
    assert isinstance(device_trial.measured(read_gguf_text(small_talk), ON_CPU, {}, AskedDevice()), Speed)
    assert f"set {CACHE_VARIABLE} to a folder that can be written" in caplog.text


@pytest.fixture
def as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own CPU is listed as a CUDA GPU: a stand-in that computes, in children too."""
    (cpu,) = [device for device in devices.engine_devices() if device.kind == "cpu"]
    gpu = replace(cpu, kind="gpu", backend="CUDA", free_bytes=1 << 40, total_bytes=1 << 40)
    monkeypatch.setattr(text, "available_devices", lambda: [gpu])


@pytest.mark.usefixtures("as_a_gpu", "empty_cache")
def test_a_model_is_measured_placed_and_read_back(small_talk: Path, tmp_path: Path) -> None:
    with edge_llama.open(small_talk, n_ctx=256, device="cpu", flash_attention=True) as model:
        chat = model.chat()
        chat.send("Hello!", temperature=0).result()
        chat.save(tmp_path / "chat")
    with edge_llama.open(small_talk, n_ctx=256, device="cuda") as model:
        assert model.resume_chat(tmp_path / "chat").reread_reason == "device was cpu and is cuda:0"
        n_layer = model.artifact.n_layer
        assert (model.placement.device, model.placement.gpu_layers) == ("cuda:0", n_layer + 1)
        told = str(model.placement)
        assert f"{n_layer + 1} layers on cuda:0 (all fit: " in told
        assert "measured: prompts " in told
        assert f"layers 0 to {n_layer - 1} and the output on CPU; the CPU computes " in told
        assert model.chat().send("What is the capital of Japan?", temperature=0).result().text.endswith("Tokyo.")
    with edge_llama.open(small_talk, n_ctx=256) as model:
        assert "measured: cuda:0 prompts " in model.placement.reason
        assert "; CPU prompts " in model.placement.reason
    with pytest.raises(EngineError, match="device cuda:0: the CPU computes"):
        edge_llama.open(small_talk, n_ctx=256, device="cuda:0", strict_device=True)


def test_a_vision_towers_nodes_are_read_back_too(
    empty_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tower.gguf").write_bytes(tiny_tower())
    artifact = read_mmproj(tmp_path / "tower.gguf")
    tile = np.zeros((1, 3, artifact.spec.tile, artifact.spec.tile), np.float32)
    embeddings = []
    for placement in (ON_CPU, Placement(0, "a test", "cpu:0", ("CPU",))):
        tower = LlamaCppVision(artifact, threads=1, placement=placement)
        embeddings.append(tower.encode(tile))
        tower.close()
    assert (embeddings[0] == embeddings[1]).all()
    assert caplog.text.count("device cpu:0: the CPU computes ") == 1
    strict = LlamaCppVision(artifact, threads=1, placement=Placement(0, "", "cpu:0", ("CPU",), is_strict=True))
    with pytest.raises(EngineError, match=r"device cpu:0: the CPU computes .*; .*--strict-device"):
        strict.encode(tile)
    strict.close()


def test_a_placement_crosses_processes_as_json() -> None:
    placement = Placement(5, "fits", "cuda:0,cuda:1", ("CUDA0", "CUDA1"), "row", (3.0, 1.0), 2, is_strict=True)
    assert Placement.from_json(json.loads(json.dumps(placement.to_json()))) == replace(placement, reason="")


def test_options_of_open_about_devices_are_checked(small_talk: Path) -> None:
    for options, problem in (
        ({"split_mode": "diagonal"}, "split_mode is 'diagonal'; known: layer, row, tensor"),
        ({"tensor_split": (0, 0)}, "tensor_split is .* expected a proportion for each device"),
        ({"tensor_split": (1, -1)}, "tensor_split is"),
        ({"tensor_split": "3,1"}, "tensor_split is '3,1'"),
        ({"cpu_moe": -1}, "cpu_moe is -1"),
        ({"cpu_moe": True}, "has no experts"),
        ({"strict_device": 1}, "strict_device is 1, expected True or False"),
        ({"device": 3}, "device"),
        ({"device": "cuda:0,cuda:0"}, "cuda:0 is named twice"),
    ):
        with pytest.raises(edge_llama.OptionError, match=problem):
            edge_llama.open(small_talk, **options)
