"""``edge-llama devices``: what is here, what would be used, what is missing and why."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import psutil
import typer

from edge_llama.backends.base import EngineState
from edge_llama.cli import options
from edge_llama.errors import printable
from edge_llama.host import devices as machine
from edge_llama.planning.engine_report import engines

# What llama.cpp's kernels make use of, on x86-64 and on ARM; the whole list is in --json.
_USEFUL = {
    *("sse3", "ssse3", "avx", "avx2", "f16c", "fma", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni"),
    *("avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"),
}


def devices(
    check: Annotated[
        bool, typer.Option("--check", help="Check the engines again, also where a verdict is remembered.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show engines and devices: versions, whether they work here, what would be used and why, what is missing.

    And by which kernels a conversion quantizes.

    Exit code 1: llama.cpp cannot be used.

    Example: edge-llama devices --json
    """
    found = engines(again=check)
    if as_json:
        print(json.dumps(described(found), ensure_ascii=False))  # noqa: T201
    else:
        lines = [*machine_lines(), *engine_lines(found)]
        print("\n".join(printable(line) for line in lines))  # noqa: T201
    if found[0].problem:
        raise typer.Exit(1)


def described(found: list[EngineState]) -> dict[str, Any]:
    """What :func:`devices` prints, for programs."""
    return {
        "cpu": {**asdict(machine.cpu()), "threads": machine.cpu_threads(), "free_threads": machine.free_threads()},
        "memory": {"total": psutil.virtual_memory().total, "available": machine.available_memory()},
        "engines": [_engine(engine) for engine in found],
        "used": _used(found[0]),
        "kernels": _kernels(),
        "missing": _missing(found),
    }


def _engine(engine: EngineState) -> dict[str, Any]:
    """What is missing is told of all engines at once."""
    return {name: value for name, value in asdict(engine).items() if name != "missing"}


def machine_lines() -> list[str]:
    """Processor and memory, for people."""
    cpu, memory = machine.cpu(), psutil.virtual_memory().total
    features = " ".join(feature for feature in cpu.features if feature in _USEFUL)
    return [
        f"CPU      {cpu.name} ({cpu.machine}), {machine.cpu_threads()} cores for us, {machine.free_threads()} free now",
        f"         {features or 'features unknown'}",
        f"memory   {memory / 1e9:.1f} GB, {machine.available_memory() / 1e9:.1f} GB available",
    ]


def engine_lines(found: list[EngineState]) -> list[str]:
    """Engines and their devices, what would be used and what is missing, for people."""
    lines = [line for engine in found for line in _engine_lines(engine)]
    lines.append(f"used     {_used(found[0])}")
    lines.append(f"kernels  {_kernels()}")
    lines += [f"missing  {line}" for line in _missing(found)]
    return lines


def _engine_lines(engine: EngineState) -> list[str]:
    lines = [f"engine   {engine.name} {engine.version or ''}: {engine.runs}"]
    if engine.problem:
        lines.append(f"         {engine.problem}; {engine.remedy}")
    if engine.checked:
        lines.append(f"         works here: it decoded in a child process ({engine.checked})")
    if engine.build:
        lines.append(f"         {engine.build}")
    if engine.kernels:
        lines.append(f"         its kernels use {engine.kernels}")
    for device in engine.devices:
        memory = f", {device.free_bytes / 1e9:.1f} of {device.total_bytes / 1e9:.1f} GB free"
        about = f"{device.description}{memory if device.total_bytes else ''}"
        lines.append(f"device   {device.option or 'none'} ({device.name}): {about}; {device.runs}")
    return lines


def _missing(found: list[EngineState]) -> list[str]:
    return [line for engine in found for line in engine.missing]


def _kernels() -> str:
    """Those that quantize; this half may be missing where models are only run."""
    try:
        from quant.loading import in_use  # noqa: PLC0415
    except ImportError:
        return "none: models are only run here"
    return in_use()


def _used(engine: EngineState) -> str:
    if engine.problem:
        return f"nothing: {engine.name} cannot be used"
    gpus = [device.option for device in engine.devices if device.option not in ("", "cpu")]
    if gpus:
        return f"{', '.join(gpus)} for models that fit there whole and were measured faster than on the CPU"
    return "the CPU: the engine's build has no GPU"
