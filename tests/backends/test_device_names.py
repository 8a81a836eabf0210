"""The grammar of devices, and their table."""

import pytest

from edge_llama.backends.device_names import ALIASES, GROUPS, KINDS, DeviceName, environment, parse
from edge_llama.errors import OptionError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("auto", DeviceName("auto")),
        ("gpu", DeviceName("gpu")),
        ("cuda", DeviceName("cuda")),
        ("vulkan:0", DeviceName("vulkan", (0,))),
        ("cuda:1,cuda:0", DeviceName("cuda", (1, 0))),
        ("openvino:gpu", DeviceName("openvino:gpu")),
        ("qnn", DeviceName("npu:qnn")),
        ("openvino:npu", DeviceName("npu:openvino")),
    ],
)
def test_a_name_is_read_and_written(text: str, name: DeviceName) -> None:
    assert parse(text) == name
    assert str(name) == ALIASES.get(text, text)


@pytest.mark.parametrize("text", [*KINDS, *GROUPS, *ALIASES, "auto", "rocm:3", "sycl:0,sycl:1"])
def test_writing_and_reading_again_changes_nothing(text: str) -> None:
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "unknown"),
        ("toaster", "known: auto, gpu, npu, cpu, metal, cuda"),
        ("CUDA0", "with a number .*: cuda:0"),
        ("cuda:", "unknown"),
        ("cuda:-1", "unknown"),
        ("cuda:٣", "unknown"),
        ("cuda:99999999999999999999", "there is no cuda:999999999"),
        ("cpu:0", "unknown"),
        ("gpu:0", "unknown"),
        ("npu:qnn:0", "unknown"),
        ("cuda:0,cuda:0", "cuda:0 is named twice; name each device once"),
        ("cuda:00,cuda:0", "named twice"),
        ("openvino:gpu,openvino:gpu", "named twice"),
        ("cuda:0,vulkan:1", "don't go together; name one, or several of one kind by their numbers"),
        ("cuda,cuda:1", "don't go together"),
        ("auto,cpu", "don't go together"),
        ("cuda:0,", "'' is unknown"),
    ],
)
def test_what_names_no_device_is_refused_with_those_that_are_known(text: str, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        parse(text)


def test_each_kind_has_an_engine_and_each_group_such_kinds() -> None:
    assert all(kind.ggml or kind.onnx for kind in KINDS.values())
    assert all(DeviceName(group).kinds for group in GROUPS)
    assert not DeviceName("auto").kinds


def test_no_two_kinds_are_the_same_device_of_an_engine() -> None:
    backends = [kind.ggml.backend for kind in KINDS.values() if kind.ggml]
    providers = [(kind.onnx.provider, kind.onnx.hardware) for kind in KINDS.values() if kind.onnx]
    assert len(set(backends)) == len(backends)
    assert len(set(providers)) == len(providers)


def test_what_chooses_among_devices_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    before = environment()
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    found = environment()
    assert set(found) - set(before) == {"CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"}
    assert found["GGML_VK_VISIBLE_DEVICES"] == found["HIP_VISIBLE_DEVICES"] != found["CUDA_VISIBLE_DEVICES"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert environment() != found
    monkeypatch.setenv("NVIDIA_API_KEY", "a secret")
    monkeypatch.setenv("VK_SECRET", "a secret")
    assert "NVIDIA_API_KEY" not in environment()
    assert "a secret" not in str(environment())
