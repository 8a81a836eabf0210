"""Where a GGUF model goes: which GPUs, how many of its layers, by what was asked for and what is faster."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_llama.backends.base import AskedDevice, Placement
from edge_llama.backends.device_names import EXCLUDED, KINDS, DeviceKind, DeviceName, impossible, parse
from edge_llama.backends.device_trial import Trial, faster
from edge_llama.errors import EngineError, OptionError
from edge_llama.files.gguf_text import GGUFArtifact
from edge_llama.host.devices import Device, available_memory

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""What names of experts' tensors have in them (llama.cpp: LLM_FFN_EXPS_REGEX in common/common.h)."""
_LAYER = re.compile(r"blk\.(\d+)\.")
_FORMS = "GGUF files: text in every format, and vision (mmproj)"
_CPU = "take --device cpu, or leave the choice (auto)"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model by where they may go: of each layer's weights, of the output's, of the whole KV cache.

    Embeddings of tokens stay on the CPU, and with ``cpu_moe`` the experts of so many first layers.
    """

    layers: tuple[int, ...]
    output: int
    cache_bytes: int
    cpu_moe: int = 0

    @property
    def n_placeable(self) -> int:
        """Layers, of which the output is the last."""
        return len(self.layers) + 1

    def of_last(self, count: int) -> int:
        """Bytes that a GPU needs for the last ``count`` of them: llama.cpp begins at the end."""
        layers = self.layers[len(self.layers) - count + 1 :] if count else ()
        return (self.output if count else 0) + sum(layers) + self.cache_bytes * len(layers) // max(len(self.layers), 1)

    def fitting(self, free: int) -> int:
        """How many of the last fit ``free`` bytes."""
        return max(count for count in range(self.n_placeable + 1) if self.of_last(count) <= free)


def sizes_of(artifact: GGUFArtifact, cache_bytes: int, cpu_moe: int | bool = False) -> Sizes:
    """The model's sizes; OptionError if experts shall stay on the CPU and there are none."""
    kept = artifact.n_layer if cpu_moe is True else min(int(cpu_moe), artifact.n_layer)
    layers, sizes = [0] * artifact.n_layer, {tensor.name: tensor.nbytes for tensor in artifact.tensors}
    experts = {name for name in sizes if re.search(EXPERTS, name)}
    if kept and not experts:
        raise OptionError(f"cpu_moe: {artifact.path} has no experts", remedy="leave it out (--cpu-moe)")
    for name, nbytes in sizes.items():
        layer = _LAYER.match(name)
        at = int(layer[1]) if layer else artifact.n_layer
        if at < artifact.n_layer and not (at < kept and name in experts):
            layers[at] += nbytes
    output = sum(nbytes for name, nbytes in sizes.items() if name.startswith("output"))
    tied = 0 if "output.weight" in sizes else sizes.get("token_embd.weight", 0)
    return Sizes(tuple(layers), output + tied, cache_bytes, kept)


def place(asked: AskedDevice, found: Sequence[Device], sizes: Sizes, trial: Trial | None = None) -> Placement:
    """Where to put a model of these sizes, by what was ``asked`` and the devices that were ``found``.

    ``auto`` takes GPUs if the whole model fits there and the ``trial`` says that they are faster than the CPU; what
    names GPUs puts as many layers there as fit. OptionError with the remedy for GPUs that the engine doesn't have or
    where not one layer fits, EngineError for those where the trial fails. Without a trial GPUs are trusted.
    """
    name = parse(asked.name)
    if name.kind == "cpu":
        asked.check_whole("--device cpu")
        return Placement(0, "as asked", is_strict=asked.is_strict)
    kind, gpus = _gpus(name, found)
    if kind is None:
        return Placement(0, _why_none(found), is_strict=asked.is_strict)
    _check_shares(asked, gpus)
    placement = _filled(asked, kind, gpus, found, sizes)
    if trial is None or not placement.devices:
        return placement
    if name.kind == "auto":
        return faster(placement, trial, replace(placement, gpu_layers=0, cpu_moe=0, is_for_prompts=True))
    speed = trial(placement)
    if isinstance(speed, str):
        raise EngineError(f"device {placement.device}: a trial in a process of its own {speed}", remedy=_remedy(kind))
    return replace(placement, reason=f"{placement.reason}; measured: {speed}")


def place_whole(asked: AskedDevice, found: Sequence[Device], nbytes: int) -> Placement:
    """Where a tower of ``nbytes`` goes that can't be cut: ``auto`` is the CPU, and of several GPUs it is one.

    OptionError as :func:`place` raises it.
    """
    name = parse(asked.name)
    if name.kind in ("auto", "cpu"):
        return Placement(0, "the default" if name.kind == "auto" else "as asked", is_strict=asked.is_strict)
    kind, gpus = _gpus(name, found)
    assert kind  # noqa: S101 - it was named
    if len(name.numbers) > 1:
        raise OptionError(f"device {name}: a vision tower goes to one device", remedy=f"name one: {kind.name}:0")
    gpu = max(gpus, key=_free)
    if nbytes > _free(gpu):
        raise OptionError(f"{nbytes:,} bytes do not fit {gpu.name}, {_free(gpu):,} are free", remedy=_CPU)
    return Placement(0, "as asked", _named(kind, [gpu], found), (gpu.name,), is_strict=asked.is_strict)


def of_kind(kind: DeviceKind, found: Sequence[Device]) -> list[Device]:
    """The engine's GPUs of a kind: their places in this list are their numbers."""
    return [device for device in found if kind.ggml and device.kind == "gpu" and device.backend == kind.ggml.backend]


def name_of(device: Device, found: Sequence[Device]) -> str:
    """How people name one of the devices that were ``found``; "" for one that is used for nothing."""
    if device.kind == "cpu":
        return "cpu"
    for kind in KINDS.values():
        if device in of_kind(kind, found):
            return _named(kind, [device], found)
    return ""


def _named(kind: DeviceKind, gpus: Sequence[Device], found: Sequence[Device]) -> str:
    """Some of a kind's GPUs, as people name them."""
    every = of_kind(kind, found)
    return str(DeviceName(kind.name, tuple(map(every.index, gpus))))


def described(device: Device, found: Sequence[Device]) -> Device:
    """``device``, one of those that were ``found``, with its name for people and what runs there."""
    option = name_of(device, found)
    why = EXCLUDED.get(device.backend, "it helps the CPU" if device.kind == "accelerator" else "it has no name here")
    return replace(device, option=option, runs=_FORMS if option else f"nothing by itself: {why}")


def missing(found: Sequence[Device]) -> tuple[str, ...]:
    """How to get the kinds of GPU that a build with the devices ``found`` can't use; those whose driver is here first.

    Empty where it can use one.
    """
    if any(name_of(device, found) not in ("", "cpu") for device in found):
        return ()
    possible = [kind for kind in KINDS.values() if kind.ggml and kind.name != "cpu" and sys.platform in kind.systems]
    return tuple(
        f"{'its driver is here: ' if kind.is_here() else ''}{_remedy(kind)}"
        for kind in sorted(possible, key=lambda kind: not kind.is_here())
    )


def _remedy(kind: DeviceKind) -> str:
    return f"for {kind.label} {kind.ggml.remedy}" if kind.ggml else _CPU


def _gpus(name: DeviceName, found: Sequence[Device]) -> tuple[DeviceKind | None, list[Device]]:
    """The kind that is meant and its GPUs, those with memory of their own if there are such; None for none (auto)."""
    wanted = name.kinds or DeviceName("gpu").kinds
    if not any(kind.ggml for kind in wanted):
        known = ", ".join(kind.name for kind in KINDS.values() if kind.ggml)
        raise OptionError(
            f"device {name}: llama.cpp does not run there",
            remedy=f"convert the model for ONNX Runtime (--to onnx), or take one of: auto, gpu, {known}",
        )
    kind = next((kind for kind in wanted if of_kind(kind, found)), None)
    if kind is None:
        if name.kind == "auto":
            return None, []
        raise impossible(name) or _lacking(name, wanted[0])
    gpus = of_kind(kind, found)
    if name.numbers:
        return kind, [_numbered(number, kind, gpus) for number in name.numbers]
    return kind, [gpu for gpu in gpus if not gpu.is_integrated] or gpus


def _lacking(name: DeviceName, kind: DeviceKind) -> OptionError:
    if len(name.kinds) > 1:
        return OptionError(
            "the installed llama.cpp has no GPU that it can use",
            remedy="build it for yours (edge-llama devices tells how), or leave the choice to it (auto)",
        )
    driver = "whose driver is here" if kind.is_likely else "and its driver was not found here either"
    return OptionError(f"device {name}: the installed llama.cpp has no {kind.label}, {driver}", remedy=_remedy(kind))


def _numbered(number: int, kind: DeviceKind, gpus: Sequence[Device]) -> Device:
    if number < len(gpus):
        return gpus[number]
    here = ", ".join(f"{kind.name}:{at} ({gpu.description})" for at, gpu in enumerate(gpus))
    raise OptionError(f"device {kind.name}:{number}: there is no such", remedy=f"here are {here}")


def _why_none(found: Sequence[Device]) -> str:
    others = "; ".join(
        f"{device.name} is not used: {EXCLUDED[device.backend]}" for device in found if device.backend in EXCLUDED
    )
    return f"the engine's build has no GPU{f': {others}' if others else ''}"


def _check_shares(asked: AskedDevice, gpus: Sequence[Device]) -> None:
    if asked.tensor_split and len(asked.tensor_split) != len(gpus):
        raise OptionError(
            f"tensor_split has {len(asked.tensor_split):,} proportions, and the model goes to {len(gpus):,} GPUs",
            remedy="give one for each: name the devices (--device cuda:0,cuda:1), or leave it out (--tensor-split)",
        )


def _filled(
    asked: AskedDevice, kind: DeviceKind, gpus: Sequence[Device], found: Sequence[Device], sizes: Sizes
) -> Placement:
    """As much as fits, of a model that may go there in part; with ``auto`` all or nothing."""
    free = _usable(gpus, asked.tensor_split) * 9 // 10  # the rest is for compute buffers and the screen
    count, all_ = sizes.fitting(free), sizes.n_placeable
    room = f"{sizes.of_last(all_):,} bytes, {free:,} usable on {', '.join(gpu.name for gpu in gpus)}"
    placement = Placement(
        count,
        f"all fit: {room}" if count == all_ else f"as many as fit: {room}",
        device=_named(kind, gpus, found),
        devices=tuple(gpu.name for gpu in gpus),
        split_mode=asked.split_mode or "layer",
        tensor_split=asked.tensor_split,
        cpu_moe=sizes.cpu_moe,
        is_strict=asked.is_strict,
    )
    if count == all_:
        return placement
    if asked.name == "auto":
        return Placement(0, f"the whole does not fit the GPU: {room}", is_strict=asked.is_strict)
    if not count:
        raise OptionError(f"not one layer fits the GPU: {room}", remedy="take --device cpu, or a smaller --n-ctx")
    if asked.is_strict:
        stay = f"layers 0 to {all_ - count - 1:,}" if all_ - count > 1 else "layer 0"
        raise OptionError(
            f"device {placement.device}: {stay} of {all_ - 1:,} would stay on the CPU: {room}",
            remedy="take a smaller --n-ctx, more devices, --cpu-moe, or leave --strict-device out",
        )
    return placement


def _usable(gpus: Sequence[Device], shares: Sequence[float]) -> int:
    """Bytes of a model that fit: as free memory is, or all that leaves room for the share of each."""
    if not shares:
        return sum(map(_free, gpus))
    rooms = (_free(gpu) * sum(shares) / share for gpu, share in zip(gpus, shares, strict=True) if share)
    return round(min(rooms, default=0))


def _free(gpu: Device) -> int:
    """What is free there; of one that doesn't tell what is free here, as llama.cpp takes it."""
    return gpu.free_bytes if gpu.total_bytes else available_memory()
