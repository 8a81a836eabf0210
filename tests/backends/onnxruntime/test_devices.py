"""ONNX Runtime's devices: which is meant, where caches lie, which nodes are taken; OpenVINO's CPU runs text towers."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from npu import needs
from one_sequence import OneSequence
from onnx_llama import text
from refusals import refusal

import converters
import edge_llama
from edge_llama.backends.base import AskedDevice, Placement
from edge_llama.backends.device_names import KINDS, DeviceKind, Onnx
from edge_llama.backends.device_trial import Speed
from edge_llama.backends.onnxruntime import engine, kv_cache, providers
from edge_llama.backends.onnxruntime.engine import ENGINE
from edge_llama.backends.onnxruntime.kv_cache import _GrowingOnDevice, _InPlaceOnDevice
from edge_llama.backends.onnxruntime.memory import DeviceMemory, Place, is_apart
from edge_llama.backends.onnxruntime.providers import resolve, runtime
from edge_llama.backends.onnxruntime.text import OnnxTower
from edge_llama.errors import EngineError, OptionError
from edge_llama.host.user_cache import CACHE_VARIABLE

PROMPT = list(range(5, 45))


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("auto", "cpu"),
        ("cpu", "cpu"),
        ("openvino", "openvino:cpu"),
        ("openvino:npu", "npu:openvino"),
        ("qnn", "npu:qnn"),
    ],
)
def test_a_device_is_resolved(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "is_installed", lambda _: True)
    assert resolve(device).name == name


def test_a_group_means_the_first_that_is_here_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceKind, "is_likely", property(lambda kind: kind.name != "npu:qnn"))
    monkeypatch.setattr(providers, "is_installed", lambda kind: kind.name in ("webgpu", "directml", "npu:openvino"))
    assert [resolve(group).name for group in ("gpu", "npu")] == ["webgpu", "npu:openvino"]
    assert (resolve("webgpu:3").name, resolve("webgpu:3").number) == ("webgpu:3", 3)
    monkeypatch.setattr(DeviceKind, "is_likely", property(lambda _: False))
    with refusal(OptionError, "device gpu: no driver of one that ONNX Runtime knows is found here"):
        resolve("gpu")


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("vulkan", "device vulkan: unknown to ONNX Runtime; known: auto, gpu, npu, cpu, metal, cuda, rocm"),
        ("sycl:1", "unknown to ONNX Runtime"),
        ("cuda:0,cuda:1", "runs a model on one device; name one"),
        ("toaster", "device toaster: unknown; known"),
    ],
)
def test_what_it_does_not_know_is_refused(device: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        resolve(device)


def test_what_is_not_installed_is_refused_with_the_command_that_brings_it() -> None:
    for device, told in (("cuda", "pip install onnxruntime-gpu"), ("rocm:1", "onnxruntime-migraphx")):
        with refusal(OptionError, f"device {device}: this onnxruntime has no .*{told}"):
            resolve(device)


@pytest.mark.skipif(sys.platform != "linux", reason="of other systems' devices")
def test_what_this_system_can_not_have_is_refused() -> None:
    for device, told in (("coreml", "Core ML"), ("metal", "Metal"), ("directml:1", "DirectML")):
        with refusal(OptionError, f"device {device}: linux has no {told}; take another device"):
            resolve(device)


def info(name: str, kind: str, vendor: int, number: int = 0, memory: str = "DEFAULT") -> Any:
    """As a provider describes its memory to ONNX Runtime."""
    lib = runtime()
    kinds, memories = lib.OrtMemoryInfoDeviceType, lib.OrtDeviceMemoryType
    arena = lib.OrtAllocatorType.ORT_DEVICE_ALLOCATOR
    return lib.OrtMemoryInfo.create_v2(name, getattr(kinds, kind), vendor, number, getattr(memories, memory), 0, arena)


@pytest.mark.parametrize(
    ("described", "is_listed", "expected"),
    [
        (("Cuda", "GPU", 0x10DE, 1), False, {"device_type": "gpu", "device_id": 1, "vendor_id": 0x10DE}),
        (("DML", "GPU", 0x1414), False, {"device_type": "gpu", "device_id": 0, "vendor_id": 0x1414}),
        (("MIGraphX", "GPU", 0x1002, 2), False, {"device_type": "gpu", "device_id": 2, "vendor_id": 0x1002}),
        (("Cuda", "GPU", 0x10DE, 1), True, "its own"),
        (("WebGPU_Buffer", "GPU", 0), True, "its own"),
        (("OpenVINO_shared_CPU", "CPU", 0x8086, 0, "HOST_ACCESSIBLE"), True, "its own"),
        (("CudaPinned", "GPU", 0x10DE, 0, "HOST_ACCESSIBLE"), False, None),
        (("Cpu", "CPU", 0), False, None),
        (("Cpu", "CPU", 0), True, None),  # QNN, MLX
    ],
)
def test_a_cache_lies_where_the_provider_takes_it(
    described: tuple[Any, ...], is_listed: bool, expected: dict[str, Any] | str | None
) -> None:
    described_memory = info(*described)
    assert is_apart(Place.of(described_memory), is_listed=is_listed) == (expected is not None)
    if expected:
        where = DeviceMemory(described_memory, is_listed=is_listed)._where
        assert where == ({"memory_info": described_memory} if expected == "its own" else expected)


@pytest.fixture(scope="module")
def portable(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable") / "tiny"
    converters.convert(llama3, folder, to="onnx", quant="f32", portable=True)
    return folder


@contextmanager
def opened(folder: Path, device: str = "cpu", **options: Any) -> Iterator[OneSequence]:
    with closing(
        OnnxTower(text(folder), n_ctx=128, threads=1, n_batch=16, placement=Placement(0, "", device, **options))
    ) as tower:
        yield OneSequence(tower)


def worked(tower: OneSequence) -> list[Any]:
    """Logits after a prompt in parts, tokens, a cut, a saved cache that is loaded, and more tokens."""
    found = []
    for at in range(0, len(PROMPT), 16):
        tower.decode(PROMPT[at : at + 16])
    found.append(tower.logits())
    for token in (7, 8):
        tower.decode([token])
    found.append(tower.logits())
    kept = tower.tower.save(0)
    tower.cut(30)
    tower.decode(PROMPT[30:])
    found.append(tower.logits())
    tower.tower.load(0, kept, len(PROMPT) + 2)
    tower.decode([9])
    found.append(tower.logits())
    tower.cut(0)
    tower.decode(PROMPT[:4])
    return [*found, tower.logits(), kept.view(np.float32)]


@pytest.mark.parametrize("form", ["in place", "growing"])
def test_a_devices_cache_does_what_numpys_does(
    form: str, onnx_folder: Path, portable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tensors are ONNX Runtime's own, here in the CPU's memory."""
    folder, kind = (onnx_folder, _InPlaceOnDevice) if form == "in place" else (portable, _GrowingOnDevice)
    with opened(folder) as tower:
        expected = worked(tower)

    def on_device(artifact: Any, session: Any, n_ctx: int) -> kv_cache.Cache:
        memory = DeviceMemory(session.get_input_memory_infos()[0], is_listed=False)
        memory._where = {"device_type": "cpu"}
        return kind(artifact, n_ctx, memory)

    monkeypatch.setattr("edge_llama.backends.onnxruntime.text.new_cache", on_device)
    with opened(folder) as tower:
        assert isinstance(tower.tower._cache, kind)  # type: ignore[attr-defined]
        for found, wanted in zip(worked(tower), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def failing_beyond(count: int, folder: Path) -> None:
    """Change a graph so that a run fails that makes the cache longer than ``count``."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "logits.before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(count + 1, np.float32), "zeros"))
    make = onnx.helper.make_node
    model.graph.node.append(make("Shape", ["attention_mask"], ["length"], start=1, end=2))
    model.graph.node.append(make("Gather", ["zeros", "length"], ["zero"], name="beyond"))
    model.graph.node.append(make("Add", ["logits.before", "zero"], ["logits"]))
    onnx.save(model, folder / "model.onnx")


def test_a_run_that_fails_leaves_the_cache_as_it_was(portable: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(portable, tmp_path / "copied"))
    (folder / "edge-llama.json").unlink()  # it has hashes
    failing_beyond(12, folder)
    with opened(portable) as tower:
        tower.decode(PROMPT[:12])
        expected = tower.logits()
    with opened(folder) as tower:
        tower.decode(PROMPT[:10])
        for tokens in (PROMPT[10:13], PROMPT[10:14]):
            with pytest.raises(EngineError, match=r"ONNX Runtime failed at position 10: .*beyond"):
                tower.decode(tokens)
        assert tower.length == 10
        tower.decode(PROMPT[10:12])
        np.testing.assert_allclose(tower.logits(), expected, atol=1e-4)
        with pytest.raises(EngineError, match="failed at position 12"):
            tower.decode([1])


def test_memory_that_can_not_be_had_is_an_error() -> None:
    memory = DeviceMemory(info("Cuda", "GPU", 0x10DE), is_listed=False)
    with pytest.raises(EngineError, match=r"64 bytes of KV cache can't be had in Cuda: .* smaller n_ctx"):
        memory.empty((4, 4))


@needs("openvino")
def test_openvinos_cache_is_in_the_memory_that_it_takes(portable: Path) -> None:
    """Not in numpy's, which would be copied for every token: what is written there after it was bound counts."""
    with opened(portable) as tower:
        expected = worked(tower)
    with opened(portable, "openvino:cpu") as tower:
        cache = tower.tower._cache  # type: ignore[attr-defined]
        assert isinstance(cache, _GrowingOnDevice)
        assert cache._memory.place == Place("OpenVINO_shared_CPU", vendor=0x8086, is_shared=True)
        for found, wanted in zip(worked(tower), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)
        value = cache._past[0]
        assert cache._memory.read(value).ctypes.data == value.data_ptr()


def test_a_plugin_that_does_not_load_is_an_error(
    portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text(f"def get_library_path(): return {str(tmp_path / 'none.so')!r}")
    monkeypatch.syspath_prepend(tmp_path)
    onnx = Onnx("WebGpuExecutionProvider", "pip install it", "onnxruntime-ep-webgpu", "broken_plugin")
    monkeypatch.setitem(KINDS, "webgpu", DeviceKind("webgpu", "WebGPU", (), lambda: True, onnx=onnx))
    with pytest.raises(EngineError, match=r"onnxruntime-ep-webgpu cannot be loaded: .*; pip install -U"):
        edge_llama.open(portable, device="webgpu", n_ctx=64)


@needs("openvino")
def test_hardware_that_a_plugin_does_not_find_is_an_error(portable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusal(OptionError, "onnxruntime-ep-openvino finds no NPU here; take another device"):
        edge_llama.open(portable, device="openvino:npu", n_ctx=64)
    monkeypatch.setitem(KINDS, "webgpu", replace(KINDS["openvino:cpu"], name="webgpu", is_numbered=True))
    with refusal(OptionError, "device webgpu:3: there are 1 of that kind; count from 0"):
        edge_llama.open(portable, device="webgpu:3", n_ctx=64)


def test_a_folder_where_nothing_can_be_kept_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    gpu = KINDS["openvino:gpu"].onnx
    assert gpu
    with refusal(OptionError, r"what a device compiles can't be kept: .*; .*EDGE_LLAMA_CACHE"):
        providers._openvino(gpu, None, 1)
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "other"))
    config = json.loads(providers._openvino(gpu, None, 1)["load_config"])
    assert config == {"GPU": {**EXACT, "CACHE_DIR": str(tmp_path / "other" / "compiled")}}


EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
QUESTIONS = ("Hello!", "What is the capital of Japan?", "What is the capital of Egypt?", "Say 5.", "Thanks!")
FORMS = {"f16": True, "int8": True, "int4": True, "int4 microsoft": False}


@pytest.fixture(scope="module")
def talks(small_talk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small model that chats, for ONNX Runtime."""
    folder, folders = tmp_path_factory.mktemp("talks"), {}
    for form, is_portable in FORMS.items():
        folders[form] = folder / form.replace(" ", "-")
        converters.convert(small_talk, folders[form], to="onnx", quant=form.split()[0], portable=is_portable)
    return folders


def answers(model: edge_llama.Model) -> list[list[int]]:
    chats = (model.chat(temperature=0, max_tokens=24).send(question) for question in QUESTIONS)
    return [list(answer.result().tokens) for answer in chats]


@needs("openvino")
@pytest.mark.parametrize("form", [form for form, is_portable in FORMS.items() if is_portable])
def test_openvino_runs_a_portable_folder_whole_and_answers_as_the_cpu(form: str, talks: dict[str, Path]) -> None:
    with edge_llama.open(talks[form], n_ctx=256) as model:
        expected = answers(model)
        assert model.placement.found == ""
    with edge_llama.open(talks[form], n_ctx=256, device="openvino:cpu", strict_device=True) as model:
        assert answers(model) == expected
        assert str(model.placement).startswith("openvino:cpu (as asked; all ")
        assert model.placement.found.endswith(" nodes on OpenVINOExecutionProvider")


@needs("openvino")
def test_nodes_that_it_leaves_are_told_or_refused(talks: dict[str, Path]) -> None:
    folder = talks["int4 microsoft"]
    with edge_llama.open(folder, n_ctx=256, device="openvino") as model:
        assert model.generate("Hello", temperature=0, max_tokens=2).result().tokens
        assert "GroupQueryAttention" in model.placement.found
        assert " nodes on OpenVINOExecutionProvider, " in model.placement.found
        assert " on the CPU: " in model.placement.found
    left = r"layers.0.norm1 \(RMSNormalization\), layers.0.attention.mixed \(GroupQueryAttention\)"
    told = rf"Provider does not run 3 of its nodes, the CPU would: {left}, .*; leave --strict-device out"
    with refusal(OptionError, told):
        edge_llama.open(folder, n_ctx=256, device="openvino", strict_device=True)


@needs("openvino")
def test_a_chat_of_the_cpu_goes_on_there_and_says_that_it_is_read_again(talks: dict[str, Path], tmp_path: Path) -> None:
    folder = talks["f16"]
    with edge_llama.open(folder, n_ctx=256) as model:
        chat = model.chat(temperature=0, max_tokens=24)
        chat.send(QUESTIONS[0]).result()
        chat.save(tmp_path / "chat")
        expected = chat.send(QUESTIONS[1]).result().text
    with edge_llama.open(folder, n_ctx=256, device="openvino:cpu") as model:
        chat = model.resume_chat(tmp_path / "chat", temperature=0, max_tokens=24)
        assert chat.reread_reason == "device was cpu and is openvino:cpu"
        assert chat.send(QUESTIONS[1]).result().text == expected
        chat.save(tmp_path / "there")
    with edge_llama.open(folder, n_ctx=256, device="openvino:cpu") as model:
        assert model.resume_chat(tmp_path / "there").reread_reason is None


def test_auto_measures_a_gpu_that_is_here_and_takes_what_is_faster(
    portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    artifact = ENGINE.read(portable / "model.onnx")
    assert ENGINE.place(artifact, AskedDevice(), 0) == Placement(0, "the default", "cpu")
    monkeypatch.setattr(DeviceKind, "is_likely", property(lambda kind: kind.name == "cuda"))
    monkeypatch.setattr(engine, "is_installed", lambda kind: kind.name == "cuda")
    placed = ENGINE.place(artifact, AskedDevice(), 0)
    assert placed.device == "cpu"
    assert "cuda is not used: a trial in a process of its own failed: " in placed.reason
    assert "cuda is not used" in caplog.text
    speeds = {"cuda": Speed(9, 9), "cpu": Speed(5, 5)}
    monkeypatch.setattr(engine, "measured", lambda _artifact, where, _engine, _asked: speeds[where.device])
    assert ENGINE.place(artifact, AskedDevice(), 0).where == "cuda"
    monkeypatch.setattr(DeviceKind, "is_likely", property(lambda kind: kind.name == "coreml"))
    monkeypatch.setattr(engine, "is_installed", lambda kind: kind.name == "coreml")
    assert ENGINE.place(artifact, AskedDevice(), 0) == Placement(0, "the default", "cpu"), "it takes next to nothing"


@needs("openvino")
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script as interpreter")
def test_a_driver_meets_a_child_first_although_the_folder_is_ours(
    portable: Path, tmp_path: Path, broken_interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    Path(broken_interpreter).write_text("#!/bin/sh\necho began\nkill -SEGV $$\n")
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", broken_interpreter)
        edge_llama.open(portable, n_ctx=64).close()
        with pytest.raises(
            EngineError, match=r"device openvino:cpu: .* a trial run .* died of signal 11; take the CPU, or update"
        ):
            edge_llama.open(portable, n_ctx=64, device="openvino:cpu")
    edge_llama.open(portable, n_ctx=64, device="openvino:cpu").close()
    monkeypatch.setattr(sys, "executable", broken_interpreter)
    edge_llama.open(portable, n_ctx=64, device="openvino:cpu").close()  # it is known


@needs("openvino")
def test_what_no_numpy_array_reaches_is_copied_by_the_provider(portable: Path) -> None:
    """As where the processor doesn't reach the device's memory: here it does, so that it can be looked at."""
    with opened(portable, "openvino:cpu") as tower:
        memory = tower.tower._cache._memory  # type: ignore[attr-defined]
        values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        memory._is_numpy = False
        value = memory.filled(values)
        assert (value.numpy() == values).all()
        assert (memory.read(value) == values).all()
        assert memory.read(value).ctypes.data != value.data_ptr()
