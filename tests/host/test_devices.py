"""How many threads an answer gets, and what the machine and the engine say of themselves."""

import sys
from pathlib import Path

import pytest

import edge_llama
from edge_llama import OptionError
from edge_llama.backends.llama_cpp.text import available_devices
from edge_llama.host import devices


@pytest.mark.parametrize(
    ("samples", "threads"),
    [([1], 4), ([3, 3, 2, 1], 4), ([5, 2, 2, 2], 3), ([4, 3, 4, 5, 1], 2), ([9, 9, 9, 9], 1), ([0], 4)],
)
def test_only_what_keeps_running_counts_as_busy(
    monkeypatch: pytest.MonkeyPatch, samples: list[int], threads: int
) -> None:
    """Our own threads are still about to sleep when the next answer begins."""
    runnable = iter(samples)
    monkeypatch.setattr(devices, "_runnable", lambda: next(runnable))
    monkeypatch.setattr(devices, "cpu_threads", lambda: 4)
    assert devices.free_threads() == threads


def test_opening_on_a_gpu_that_the_build_lacks_is_an_error(packaged: Path) -> None:
    if any(device.kind == "gpu" for device in available_devices()):
        pytest.skip("this build has one")
    with pytest.raises(OptionError, match="no GPU"):
        edge_llama.open(packaged, device="gpu")
    with pytest.raises(OptionError, match=r"vulkan:1: the installed llama.cpp has no Vulkan, .*-DGGML_VULKAN=on"):
        edge_llama.open(packaged, device="vulkan:1")


def test_the_processor_has_a_name_and_the_engine_sees_it() -> None:
    assert devices.cpu().name
    assert "cpu" in {device.kind for device in available_devices()}


@pytest.mark.skipif(sys.platform != "linux" or devices.cpu().machine != "x86_64", reason="reads /proc/cpuinfo")
def test_the_processors_features_are_the_systems() -> None:
    assert "sse2" in devices.cpu().features
