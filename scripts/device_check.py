#!/usr/bin/env python3
"""Prove a device: one run of under 8 minutes, without network, that writes a table for docs/devices.md.

    python scripts/device_check.py --device vulkan                  # or cpu, cuda:0, metal, openvino:cpu, npu:qnn, ...
    python scripts/device_check.py --device cuda --json > cuda.json
    python scripts/device_check.py --device cpu --checks text speed --quick

text      20 greedy answers of 32 tokens by a float32 model: the CPU's, or every divergence at a margin below 0.01
part      the same with half of the layers on the device (llama.cpp)
vision    answers about pictures, the vision tower on the device
sessions  saved on the CPU and resumed on the device, and back: with its KV cache, or told why not
speed     pp512 and tg128, beside the CPU's
callers   1, 8 and 64 at once, where the engine batches
memory    what an open model takes, beside the plan

Every check works in a process of its own: one that fails, hangs or dies stops no other. So are models converted, from
the tests' small trained ones and from random weights (--model FILE measures speed and memory with another .gguf file).
Needs the extra convert. Exit code: 0 if nothing failed and the device did something, else 1; 2 for a device that can't
be named. Progress goes to a terminal's standard error, the table to standard output.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from device_checks import CHECKS, FORMS, Row, Size, conversions_of, job_of

from edge_llama.backends import crash_probe
from edge_llama.backends.base import EngineState
from edge_llama.backends.device_names import parse
from edge_llama.errors import OptionError
from edge_llama.host.devices import cpu
from edge_llama.planning.engine_report import engines

QUICK = Size(prompts=3, tokens=8, read=32, write=8, callers=(1, 2), seconds=2)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        forms = forms_of(options.device)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    started, found = time.monotonic(), engines()
    absent = {form: how for form in forms if (how := lacking(options.device, form, found))}
    with tempfile.TemporaryDirectory(prefix="device-check-") as folder:
        here = [form for form in forms if form not in absent]
        rows = list(checked(options, here, Path(folder), started + options.seconds))
    rows += [Row(FORMS[form].label, "left out", how) for form, how in absent.items()]
    report = {"device": options.device, "machine": machine(found), "seconds": time.monotonic() - started}
    print(json.dumps({**report, "rows": [asdict(row) for row in rows]}) if options.json else table(report, rows))
    is_done = any(row.outcome == "ok" for row in rows[1:])  # beside the conversions
    return 0 if is_done and not any(row.outcome == "failed" for row in rows) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True, help="as edge-llama run --device takes it")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--model", type=Path, help="a .gguf file for speed, callers and memory")
    parser.add_argument("--seconds", type=float, default=480, help="what is not done by then fails; default: 480")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller: does the check itself work?")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def forms_of(device: str) -> list[str]:
    """The forms of models that run on a device: keys of FORMS. OptionError for what names no device."""
    name = parse(device)
    if name.kind.startswith("npu"):
        return ["integers"]
    if name.kind == "auto":
        return ["gguf", "onnx"]
    kinds = name.kinds
    return [form for form, has in (("gguf", any(k.ggml for k in kinds)), ("onnx", any(k.onnx for k in kinds))) if has]


def lacking(device: str, form: str, found: Sequence[EngineState]) -> str:
    """Why the engine of a form can't use the device here, and the command that brings it; "" if it can."""
    kinds = parse(device).kinds
    engine = found[0 if form == "gguf" else 1]
    here = {parse(each.option).kind for each in engine.devices if each.option}
    if engine.problem or not kinds or any(kind.name in here for kind in kinds):
        return ""  # a problem makes its checks fail
    possible = [kind for kind in kinds if kind.is_possible]
    if form == "gguf":
        ways = [kind.ggml.remedy for kind in possible if kind.ggml]
    else:
        ways = [kind.onnx.install for kind in possible if kind.onnx]
    return f"{engine.name} has none: {' or '.join(ways) or 'this system can not'}"


def checked(options: argparse.Namespace, forms: Sequence[str], folder: Path, ends: float) -> Iterator[Row]:
    """A row for each form and check, and one for the conversions before them."""
    progress = Progress(len(options.checks) * len(forms) + 1)
    progress.say("converting")
    inputs, row = converted(options, forms, folder, seconds_left(options, ends))
    yield row
    size = QUICK if options.quick else Size()
    for form in forms:
        for check in options.checks:
            label = f"{check}, {FORMS[form].label}"
            progress.say(label)
            if needed(form, check):
                job = job_of(check, options.device, form, inputs, size)
                yield in_child(label, job, seconds_left(options, ends))
        if absent := [check for check in options.checks if not needed(form, check)]:
            yield Row(", ".join((*absent, FORMS[form].label)), "left out", "not measured in integers")
    progress.end()


def seconds_left(options: argparse.Namespace, ends: float) -> float:
    """For what is begun now: if it hangs, it leaves some for the others."""
    return min(ends - time.monotonic(), float(options.seconds) / 3)


def needed(form: str, check: str) -> str:
    """The name of the input that a check opens; "" if the form has none."""
    return str(getattr(FORMS[form], CHECKS[check][1]))


def converted(
    options: argparse.Namespace, forms: Sequence[str], folder: Path, seconds: float
) -> tuple[dict[str, str], Row]:
    """The paths of the inputs by their names, and the row that says what became of them."""
    wanted = {needed(form, check) for form in forms for check in options.checks} - {""}
    inputs = {name: str(folder / name) for name in wanted}
    if options.model and "speed.gguf" in wanted:
        wanted.remove("speed.gguf")
        inputs["speed.gguf"] = str(options.model)
    return inputs, in_child("conversions", conversions_of(wanted, folder, is_quick=options.quick), seconds)


def in_child(label: str, job: str, seconds: float) -> Row:
    """What a check's process says; a failed row if it dies, or takes more than ``seconds``."""
    if seconds <= 0:
        return Row(label, "failed", "not begun: the time was up")
    try:
        outcome = crash_probe.run("device_checks", job, seconds=seconds)
    except subprocess.TimeoutExpired:
        return Row(label, "failed", f"stopped: it was not done in {seconds:.0f} s")
    if outcome.said is None:
        return Row(label, "failed", f"its process {outcome.how}")
    return Row(**outcome.said)


class Progress:
    """A line on a terminal's standard error; nothing elsewhere."""

    def __init__(self, count: int) -> None:
        self._count, self._at, self._is_shown = count, 0, sys.stderr.isatty()

    def say(self, what: str) -> None:
        """The next one, in place of the last."""
        self._at += 1
        self._show(f"{self._at}/{self._count} {what} ...")

    def end(self) -> None:
        """Leave an empty line."""
        self._show("")

    def _show(self, text: str) -> None:
        if self._is_shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def machine(found: Sequence[EngineState]) -> dict[str, Any]:
    """What was checked: processor, system, engines and the devices that these see."""
    return {
        "cpu": cpu().name,
        "system": f"{platform.system()} {platform.machine()}",
        "engines": {engine.name: engine.version for engine in found},
        "devices": [device.description for engine in found for device in engine.devices if device.kind == "gpu"],
    }


def table(report: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Markdown, as docs/devices.md has it."""
    here = report["machine"]
    engine = ", ".join(f"{name} {version}" for name, version in here["engines"].items() if version)
    what = ", ".join([*here["devices"], here["cpu"], here["system"], engine])
    lines = [f"`{report['device']}` ({what}), {report['seconds']:.0f} s:", "", "| check | | |", "|---|---|---|"]
    cells = ((row.check, row.outcome, row.told) for row in rows)
    return "\n".join(
        [*lines, *(f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in each)} |" for each in cells)]
    )


if __name__ == "__main__":
    sys.exit(main())
