"""How fast a model is on a device, measured once in a child process, which a broken driver may end.

The whole model is loaded there: a prompt and a few tokens, after both were done once to have kernels compiled. What was
found is remembered for the model, the engine's build, the processor, the devices and the variables that choose among
them.
"""

import json
import logging
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from edge_llama.backends import crash_probe
from edge_llama.backends.base import CacheSize, OneSequence, Placement
from edge_llama.backends.device_names import environment
from edge_llama.backends.llama_cpp import build_probe
from edge_llama.backends.llama_cpp.gpus import Speed
from edge_llama.errors import EdgeLlamaError
from edge_llama.files.gguf_text import GGUFArtifact, read_gguf_text
from edge_llama.files.identity import header_sha256
from edge_llama.host import devices, user_cache

_log = logging.getLogger("edge_llama")
_KIND = "device-speed"
_PROMPT, _ANSWER = 128, 8
_SECONDS, _BYTES_PER_SECOND = 120, 20e6


def measured(artifact: GGUFArtifact, placement: Placement, found: Sequence[devices.Device]) -> Speed | str:
    """The model's speed where ``placement`` puts it, by the devices that were ``found``; or how the child failed.

    A failure is not remembered.
    """
    placement = replace(placement, is_strict=False)
    is_part = 0 < placement.gpu_layers <= artifact.n_layer
    key = {
        "model": [header_sha256(header) for header in artifact.headers],
        "bytes": artifact.weight_bytes,
        "build": build_probe.build(),
        "cpu": asdict(devices.cpu()),
        "threads": devices.cpu_threads(),
        "devices": [[device.name, device.description, device.total_bytes] for device in found],
        "environment": environment(),
        # How many layers fit, if not all do, changes with every byte that is free.
        "placement": placement.to_json() | ({"gpu_layers": "some"} if is_part else {}),
    }
    kept = user_cache.recall(_KIND, key)
    if kept is not None and set(kept) == {"prompt", "answer"}:
        return Speed(**kept)
    said = _tried(artifact, placement)
    if isinstance(said, Speed) and not user_cache.remember(_KIND, key, asdict(said)):
        _log.warning(
            "how fast %s is on %s is measured with each opening, for it can't be kept: set %s to a folder that can be "
            "written",
            *(artifact.path.name, placement.device, user_cache.CACHE_VARIABLE),
        )
    return said


def _tried(artifact: GGUFArtifact, placement: Placement) -> Speed | str:
    seconds = _SECONDS + artifact.weight_bytes / _BYTES_PER_SECOND
    try:
        outcome = crash_probe.run(__name__, str(artifact.path), json.dumps(placement.to_json()), seconds=seconds)
    except OSError as error:
        return f"can't be started: {error}"
    except subprocess.TimeoutExpired:
        return f"took more than {seconds:,.0f} s"
    if outcome.said is None:
        return outcome.how
    failure = outcome.said.get("failure")
    return f"failed: {failure}" if failure else Speed(**outcome.said)


def main(path: str, placement: str) -> None:
    """The child: tell the speed, or what was raised."""
    crash_probe.begin()
    try:
        said = asdict(_speed(read_gguf_text(Path(path)), Placement.from_json(json.loads(placement))))
    except EdgeLlamaError as error:
        said = {"failure": str(error)}
    crash_probe.end(json.dumps(said))


def _speed(artifact: GGUFArtifact, placement: Placement) -> Speed:
    from edge_llama.backends.llama_cpp.text import LlamaCppTower  # noqa: PLC0415 - loads native code

    n_prompt = min(_PROMPT, artifact.n_ctx_train - _ANSWER - 1)
    tower = LlamaCppTower(
        artifact,
        cache=CacheSize.of_one(n_prompt + _ANSWER),
        threads=devices.cpu_threads(),
        flash_attention=placement.gpu_layers > 0,
        kv_format="f16",
        placement=placement,
    )
    sequence = OneSequence(tower)
    tokens = [token % artifact.n_vocab for token in range(n_prompt)]
    for _ in range(2):  # the first time kernels are compiled, and pages brought in
        sequence.cut(0)
        begun = time.perf_counter()
        sequence.decode(tokens)
        prompted = time.perf_counter()
        for token in tokens[:_ANSWER]:
            sequence.decode([token])
        done = time.perf_counter()
    tower.close()
    return Speed(n_prompt / (prompted - begun), _ANSWER / (done - prompted))
