"""Where a GGUF model goes. GPUs are none here: the choice is tested, not the device."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_llama import EngineError, OptionError
from edge_llama.backends.base import AskedDevice, Placement
from edge_llama.backends.device_trial import Speed, Trial
from edge_llama.backends.llama_cpp.gpus import Sizes, described, missing, place, place_whole, sizes_of
from edge_llama.files.gguf_text import read_gguf_text
from edge_llama.host.devices import Device


def device(name: str, kind: str = "gpu", free: int = 10_000, *, is_integrated: bool = False) -> Device:
    return Device(name, kind, f"a {name}", free, free, name.rstrip("0123456789"), is_integrated)


CPU, CUDA, SECOND = device("CPU", "cpu"), device("CUDA0"), device("CUDA1", free=30_000)
VULKAN = device("Vulkan0")
NINE = Sizes((400,) * 9, 400, 1_000)
BIG = Sizes((1_700,) * 9, 1_700, 900)


def placed(name: str, *found: Device, sizes: Sizes = NINE, trial: Trial | None = None, **asked: object) -> Placement:
    return place(AskedDevice(name, **asked), found, sizes, trial)  # type: ignore[arg-type] # as a test gives them


@pytest.mark.parametrize("wanted", ["auto", "gpu", "cuda", "cuda:0"])
def test_a_model_that_fits_the_gpu_goes_there_whole(wanted: str) -> None:
    where = placed(wanted, CPU, CUDA)
    assert (where.gpu_layers, where.device, where.devices) == (10, "cuda:0", ("CUDA0",))  # the output counts as one
    assert str(where).startswith("10 layers on cuda:0 (all fit: 5,000 bytes, 9,000 usable on CUDA0")


def test_one_that_does_not_fit_goes_there_in_part_only_when_asked() -> None:
    assert placed("auto", CPU, CUDA, sizes=BIG).gpu_layers == 0
    assert placed("gpu", CPU, CUDA, sizes=BIG).gpu_layers == 5  # the output and four layers: 1,700 + 4 * 1,800
    assert placed("gpu", CPU, CUDA, SECOND, sizes=BIG).gpu_layers == 10


def test_cpu_means_cpu() -> None:
    assert placed("cpu", CPU, CUDA) == Placement(0, "as asked")
    assert placed("auto", CPU).device == "cpu"


def test_of_several_kinds_for_one_gpu_one_is_taken_and_its_integrated_one_left() -> None:
    both = (VULKAN, CUDA, device("CUDA1", is_integrated=True), CPU)
    assert placed("auto", *both).devices == ("CUDA0",)
    assert placed("vulkan", *both).devices == ("Vulkan0",)
    assert placed("cuda:1", *both).devices == ("CUDA1",)
    assert placed("gpu", CPU, device("Vulkan0", is_integrated=True)).devices == ("Vulkan0",)


def test_several_share_a_model_as_asked() -> None:
    where = placed("cuda:1,cuda:0", CPU, CUDA, SECOND, sizes=BIG, split_mode="row", tensor_split=(3.0, 1.0))
    assert (where.device, where.devices) == ("cuda:1,cuda:0", ("CUDA1", "CUDA0"))
    assert (where.split_mode, where.tensor_split) == ("row", (3.0, 1.0))
    assert placed("cuda", CPU, CUDA, SECOND).device == "cuda:0,cuda:1"
    with pytest.raises(OptionError, match="tensor_split has 3 proportions, and the model goes to 2 GPUs"):
        placed("cuda", CUDA, SECOND, tensor_split=(1.0, 1.0, 1.0))
    for options in ({"tensor_split": (1.0,)}, {"split_mode": "row"}, {"cpu_moe": 2}):
        with pytest.raises(OptionError, match=r"but --device cpu runs a tower on one device; leave it out \(--"):
            placed("cpu", CUDA, **options)


def test_shares_decide_what_fits() -> None:
    """Of 20 MB on two GPUs of 100 and 11, nine tenths go to the first or to the second."""
    sizes, small = Sizes((10**6,) * 19, 10**6, 0), replace(SECOND, free_bytes=11 * 10**6, total_bytes=11 * 10**6)
    large = replace(CUDA, free_bytes=10**8, total_bytes=10**8)
    assert placed("cuda", large, small, sizes=sizes, tensor_split=(9.0, 1.0)).gpu_layers == 20
    assert placed("cuda", large, small, sizes=sizes, tensor_split=(1.0, 9.0)).gpu_layers == 10
    assert placed("cuda", large, small, sizes=sizes, tensor_split=(1.0, 0.0)).gpu_layers == 20


def test_a_gpu_that_cannot_be_used_is_an_error_with_the_remedy() -> None:
    with pytest.raises(OptionError, match=r"no GPU that it can use; build it for yours \(edge-llama devices"):
        placed("gpu", CPU)
    with pytest.raises(
        OptionError, match=r"no CUDA, .*for CUDA .*CMAKE_ARGS=\"-DGGML_CUDA=on\"|has no CUDA; take another"
    ):
        placed("cuda", CPU, VULKAN)
    with pytest.raises(OptionError, match=r"cuda:2: there is no such; here are cuda:0 \(a CUDA0\), cuda:1"):
        placed("cuda:2", CPU, CUDA, SECOND)
    with pytest.raises(OptionError, match="not one layer fits"):
        placed("gpu", CPU, CUDA, sizes=Sizes((10**6,) * 9, 10**6, 0))
    with pytest.raises(OptionError, match=r"known: auto, gpu, npu, cpu"):
        placed("tpu", CPU)
    if sys.platform == "linux":
        with pytest.raises(OptionError, match="device metal: linux has no Metal; take another device"):
            placed("metal", CPU, CUDA)
    for elsewhere in ("coreml", "npu", "qnn", "openvino:gpu"):
        with pytest.raises(OptionError, match=r"llama.cpp does not run there; convert the model for ONNX Runtime"):
            placed(elsewhere, CPU, CUDA)


def test_strictly_a_part_is_an_error_that_names_the_layers_that_would_stay() -> None:
    with pytest.raises(OptionError, match=r"device cuda:0: layers 0 to 4 of 9 would stay on the CPU"):
        placed("cuda", CPU, CUDA, sizes=BIG, is_strict=True)
    assert placed("cuda", CPU, CUDA, is_strict=True).is_strict


def test_backends_that_are_excluded_are_not_used_and_told_why() -> None:
    hexagon = device("HTP0")
    assert (
        "HTP0 is not used: llama.cpp's Hexagon backend calls itself experimental" in placed("auto", CPU, hexagon).reason
    )
    assert described(hexagon, [CPU, hexagon]).option == ""
    assert "Hexagon" in described(hexagon, [CPU, hexagon]).runs
    assert missing([CPU, hexagon])


def test_each_device_has_its_name_for_people() -> None:
    found = [CUDA, VULKAN, SECOND, CPU, device("BLAS", "accelerator")]
    assert [described(each, found).option for each in found] == ["cuda:0", "vulkan:0", "cuda:1", "cpu", ""]
    assert not missing(found)


SLOW, FAST = Speed(100, 10), Speed(1_000, 50)


def trying(gpu: Speed | str, cpu: Speed | str = SLOW, prompts: Speed | str = "was not asked for") -> Trial:
    """What a model's trials would say on the GPU, on the CPU, and with the GPU for prompts alone."""

    def trial(where: Placement) -> Speed | str:
        if not where.devices:
            return cpu
        return gpu if where.gpu_layers else prompts

    return trial


@pytest.mark.parametrize(
    ("trial", "where", "reason"),
    [
        (trying(FAST), "10 layers on cuda:0", r"measured: cuda:0 prompts 1,000.0, answers 50.0 tokens/s; CPU prompts"),
        (trying(Speed(50, 5)), "CPU", r"cuda:0 is slower: measured: cuda:0 prompts 50.0, answers 5.0"),
        (trying(Speed(50, 11)), "10 layers on cuda:0", "measured"),
        (trying(Speed(900, 5), SLOW, Speed(700, 10)), "CPU, prompts on cuda:0", "answers are faster on the CPU"),
        (trying(Speed(900, 5), SLOW, Speed(105, 10)), "CPU", "cuda:0 is slower"),
        (trying(Speed(900, 5), SLOW, "died of signal 11"), "CPU", "cuda:0 is slower"),
        (
            trying("died of signal 6: driver"),
            "CPU",
            "cuda:0 is not used: a trial in a process of its own died",
        ),
        (trying(FAST, "took more than 9 s"), "10 layers on cuda:0", "on the CPU a trial took more than 9 s"),
    ],
)
def test_auto_takes_what_was_measured_faster_and_says_so(trial: Trial, where: str, reason: str) -> None:
    chosen = placed("auto", CPU, CUDA, trial=trial)
    assert chosen.where == where
    assert reason.replace("\\", "") in chosen.reason


def test_what_was_asked_for_by_name_is_tried_and_its_failure_an_error() -> None:
    assert "measured: prompts 100.0" in placed("cuda", CPU, CUDA, trial=trying(SLOW, FAST)).reason
    with pytest.raises(EngineError, match=r"device cuda:0: a trial .* died of signal 11; for CUDA"):
        placed("cuda", CPU, CUDA, trial=trying("died of signal 11"))


def test_nothing_is_tried_where_there_is_no_choice() -> None:
    def trial(where: Placement) -> Speed | str:
        raise AssertionError(where)

    assert placed("cpu", CPU, CUDA, trial=trial).where == "CPU"
    assert placed("auto", CPU, trial=trial).where == "CPU"
    assert placed("auto", CPU, CUDA, sizes=BIG, trial=trial).where == "CPU"


def test_a_vision_tower_goes_to_one_device_whole() -> None:
    def whole(name: str, nbytes: int = 5_000) -> Placement:
        return place_whole(AskedDevice(name), [CPU, CUDA, SECOND], nbytes)

    assert whole("auto").where == whole("cpu").where == "CPU"
    assert whole("gpu").where == "cuda:1"  # where more is free
    assert whole("cuda:0").devices == ("CUDA0",)
    with pytest.raises(OptionError, match=r"goes to one device; name one: cuda:0"):
        whole("cuda:0,cuda:1")
    with pytest.raises(OptionError, match="20,000 bytes do not fit CUDA0, 10,000 are free"):
        whole("cuda:0", 20_000)


def test_sizes_are_those_of_the_models_tensors(packaged: Path) -> None:
    artifact = read_gguf_text(packaged)
    sizes = sizes_of(artifact, 3_000)
    (embeddings,) = (tensor.nbytes for tensor in artifact.tensors if tensor.name == "token_embd.weight")
    assert len(sizes.layers) == artifact.n_layer
    assert sizes.of_last(sizes.n_placeable) == artifact.weight_bytes + 3_000  # its embeddings are its output, too
    assert sizes.of_last(1) > embeddings
    assert sizes.of_last(0) == 0
    with pytest.raises(OptionError, match=r"cpu_moe: .* has no experts"):
        sizes_of(artifact, 0, cpu_moe=True)


def test_experts_that_stay_on_the_cpu_need_no_room_on_the_gpu(experts: Path) -> None:
    artifact = read_gguf_text(experts)
    whole, first, none = (sizes_of(artifact, 0, cpu_moe=count) for count in (0, 1, True))
    assert (whole.cpu_moe, first.cpu_moe, none.cpu_moe) == (0, 1, artifact.n_layer)
    assert none.layers[-1] < whole.layers[-1]
    assert first.layers[0] < whole.layers[0]
    assert first.layers[1:] == whole.layers[1:]
