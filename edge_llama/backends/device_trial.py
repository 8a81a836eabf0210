"""How fast a model is on a device, measured once in a child process, which a broken driver may end.

The whole model is loaded there: a prompt and a few tokens, after both were done once to have kernels compiled. What was
found is remembered for the model, the engine's build, the processor, the devices and the variables that choose among
them.
"""

import json
import logging
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edge_llama.backends import crash_probe
from edge_llama.backends.base import AskedDevice, CacheSize, OneSequence, Placement, Setting, TextTower
from edge_llama.backends.device_names import environment
from edge_llama.backends.registry import engine_for
from edge_llama.errors import ArtifactError, EdgeLlamaError
from edge_llama.files.artifact import Artifact
from edge_llama.host import devices, user_cache

_log = logging.getLogger("edge_llama")
_KIND = "device-speed"
_PROMPT, _ANSWER = 128, 8
_SECONDS, _BYTES_PER_SECOND = 120, 20e6
_DAY = 86_400
"""Seconds after which a device that failed is tried again: its driver may be another, or its memory free."""
_WORTH_IT = 1.1  # prompts that aren't faster by a tenth aren't worth the way to the device


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second that were measured: of a prompt, and of an answer."""

    prompt: float
    answer: float

    def __str__(self) -> str:
        return f"prompts {self.prompt:,.1f}, answers {self.answer:,.1f} tokens/s"


Trial = Callable[[Placement], Speed | str]
"""How fast the model is there, or how it failed."""


def faster(device: Placement, trial: Trial, prompts: Placement | None = None) -> Placement:
    """``device`` or the CPU, by what was measured: answers are what people wait for.

    ``prompts``: where the engine can have the device for prompts alone, that is the third choice.
    """
    cpu = Placement(0, "", is_strict=device.is_strict)
    there = trial(device)
    if isinstance(there, str):
        reason = f"{device.device} is not used: a trial in a process of its own {there}"
        _log.warning("%s (--device cpu is content with that)", reason)
        return replace(cpu, reason=reason)
    here = trial(cpu)
    if isinstance(here, str):
        return replace(device, reason=f"{device.reason}; measured: {there}; on the CPU a trial {here}")
    measured = f"measured: {device.device} {there}; CPU {here}"
    if there.answer >= here.answer:
        return replace(device, reason=f"{device.reason}; {measured}")
    if prompts and there.prompt > here.prompt:
        both = trial(prompts)
        if isinstance(both, Speed) and both.prompt > _WORTH_IT * here.prompt and both.answer * _WORTH_IT > here.answer:
            return replace(prompts, reason=f"answers are faster on the CPU; {measured}; prompts there {both}")
    return replace(cpu, reason=f"{device.device} is slower: {measured}")


def measured(artifact: Artifact, placement: Placement, engine: Mapping[str, Any], asked: AskedDevice) -> Speed | str:
    """The model's speed where ``placement`` puts it, or how the child failed.

    ``engine``: all that the speed depends on of the engine and the devices that it has, as JSON. A failure is
    remembered for a day, but a device that was ``asked`` for by its name is tried again. ArtifactError if the file is
    to blame.
    """
    placement = replace(placement, is_strict=False)
    is_part = 0 < placement.gpu_layers <= artifact.n_layer
    key = {
        "model": artifact.identity(),
        "engine": engine,
        "cpu": asdict(devices.cpu()),
        "threads": devices.cpu_threads(),
        "environment": environment(),
        # How many layers fit, if not all do, changes with every byte that is free.
        "placement": placement.to_json() | ({"gpu_layers": "some"} if is_part else {}),
    }
    kept = user_cache.recall(_KIND, key) or {}
    if set(kept) == {"prompt", "answer"}:
        return Speed(**kept)
    if set(kept) == {"failure", "at"} and asked.name == "auto" and 0 <= time.time() - kept["at"] < _DAY:
        return f"{kept['failure']} (within the last day: --device {placement.device} tries again)"
    said = _tried(artifact, placement)
    finding = asdict(said) if isinstance(said, Speed) else {"failure": said, "at": time.time()}
    if not user_cache.remember(_KIND, key, finding):
        _log.warning(
            "how fast %s is on %s is measured with each opening, for it can't be kept: set %s to a folder that can be "
            "written",
            *(artifact.path.name, placement.device, user_cache.CACHE_VARIABLE),
        )
    return said


def _tried(artifact: Artifact, placement: Placement) -> Speed | str:
    """What a child found; ArtifactError if the file is to blame."""
    seconds = _SECONDS + artifact.weight_bytes / _BYTES_PER_SECOND
    _log.info("%s: measuring its speed on %s, once", artifact.path, placement.device)
    try:
        outcome = crash_probe.run(__name__, str(artifact.path), json.dumps(placement.to_json()), seconds=seconds)
    except OSError as error:
        return f"can't be started: {error}"
    except subprocess.TimeoutExpired:
        return f"took more than {seconds:,.0f} s"
    if outcome.said is None:
        return outcome.how
    if "failure" not in outcome.said:
        return Speed(**outcome.said)
    kind, message, remedy = outcome.said["failure"]
    if kind == ArtifactError.__name__:
        raise ArtifactError(message, remedy=remedy)
    return f"failed: {message}"


def main(path: str, placement: str) -> None:
    """The child: tell the speed, or what was raised."""
    crash_probe.begin()
    try:
        said = asdict(_speed(Path(path), Placement.from_json(json.loads(placement))))
    except EdgeLlamaError as error:
        said = {"failure": [type(error).__name__, error.message, error.remedy]}
    crash_probe.end(json.dumps(said))


def _speed(path: Path, placement: Placement) -> Speed:
    engine = engine_for(path)
    artifact = engine.read(path)
    n_prompt = min(_PROMPT, artifact.n_ctx_train - _ANSWER - 1)
    tower: TextTower = engine.open(
        artifact,
        cache=CacheSize.of_one(n_prompt + _ANSWER),
        setting=Setting(flash_attention=placement.gpu_layers > 0),
        placement=placement,
        threads=devices.cpu_threads(),
    )
    sequence = OneSequence(tower)
    tokens = [token % artifact.n_vocab for token in range(n_prompt)]
    for _ in range(2):  # the first time kernels are compiled, and pages brought in
        sequence.cut(0)
        begun = time.perf_counter()
        for at in range(0, n_prompt, tower.n_batch):
            sequence.decode(tokens[at : at + tower.n_batch])
        prompted = time.perf_counter()
        for token in tokens[:_ANSWER]:
            sequence.decode([token])
        done = time.perf_counter()
    tower.close()
    return Speed(n_prompt / (prompted - begun), _ANSWER / (done - prompted))
