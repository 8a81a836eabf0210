"""How many threads an answer gets, and where a model goes. GPUs are none here: the choice is tested, not the device."""

import sys
from pathlib import Path

import pytest

import edge_llama
from edge_llama import OptionError
from edge_llama.backends.base import Placement
from edge_llama.backends.llama_cpp.gpus import place
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


GPU = devices.Device("CUDA0", "gpu", "a GPU", free_bytes=10_000, total_bytes=12_000)
CPU = devices.Device("CPU", "cpu", "a processor", free_bytes=1 << 30, total_bytes=1 << 30)


def placed(wanted: str, *found: devices.Device, weight_bytes: int = 4_000) -> Placement:
    return place(wanted, found, n_layer=9, weight_bytes=weight_bytes, cache_bytes=1_000)


@pytest.mark.parametrize("wanted", ["auto", "gpu"])
def test_a_model_that_fits_the_gpu_goes_there_whole(wanted: str) -> None:
    assert placed(wanted, CPU, GPU).gpu_layers == 10  # the output counts as one


def test_one_that_does_not_fit_goes_there_in_part_only_when_asked() -> None:
    assert placed("auto", CPU, GPU, weight_bytes=17_000).gpu_layers == 0
    assert placed("gpu", CPU, GPU, weight_bytes=17_000).gpu_layers == 5
    assert placed("gpu", GPU, GPU, weight_bytes=17_000).gpu_layers == 10


def test_cpu_means_cpu() -> None:
    assert placed("cpu", CPU, GPU).gpu_layers == 0
    assert placed("auto", CPU).gpu_layers == 0


def test_a_gpu_that_cannot_be_used_is_an_error_with_the_remedy() -> None:
    with pytest.raises(OptionError, match=r"no GPU that it can use; build it for yours \(edge-llama devices"):
        placed("gpu", CPU)
    with pytest.raises(OptionError, match="not one layer fits"):
        placed("gpu", CPU, GPU, weight_bytes=1_000_000)
    with pytest.raises(OptionError, match="known: auto, cpu, gpu"):
        placed("tpu", CPU)


def test_opening_on_a_gpu_that_the_build_lacks_is_an_error(packaged: Path) -> None:
    if any(device.kind == "gpu" for device in available_devices()):
        pytest.skip("this build has one")
    with pytest.raises(OptionError, match="no GPU"):
        edge_llama.open(packaged, device="gpu")


def test_the_processor_has_a_name_and_the_engine_sees_it() -> None:
    assert devices.cpu().name
    assert "cpu" in {device.kind for device in available_devices()}


@pytest.mark.skipif(sys.platform != "linux" or devices.cpu().machine != "x86_64", reason="reads /proc/cpuinfo")
def test_the_processors_features_are_the_systems() -> None:
    assert "sse2" in devices.cpu().features
