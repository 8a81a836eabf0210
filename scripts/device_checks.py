"""What is checked of a device: a function for each check, which gives a row of the table.

``device_check.py`` calls each in a process of its own, which a driver may end.
"""

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from device_inputs import QUESTIONS, make, pictures

import edge_llama
from edge_llama import Answer, Message, Model
from edge_llama.backends import crash_probe
from edge_llama.backends.base import OneSequence, Placement
from edge_llama.backends.registry import open_artifact
from edge_llama.cli import speed as llama_bench
from edge_llama.host.devices import cpu_threads
from edge_llama.planning.options import checked
from edge_llama.planning.plan import EnginePlan, plan_engine

CPU = "cpu"
_TOLERATED = 256 << 20
"""Bytes beyond what was planned: what a driver takes for itself."""
EXACT = {"kv_format": "f32", "flash_attention": False}
"""So that only the order of additions differs between two devices that compute in float32."""
SECOND = "And of Egypt?"
"""What a resumed conversation is asked."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of models: inputs by their names (""; there is none), and by how much logits of a device may be off.

    ``options`` are those with which the text tower computes exactly, where that is not in its file.
    """

    label: str
    text: str
    digits: str
    speed: str
    limit: float
    options: Mapping[str, Any]


FORMS = {
    "gguf": Form("GGUF", "text.gguf", "digits-gguf", "speed.gguf", 0.01, EXACT),
    "onnx": Form("ONNX", "text-onnx", "digits-onnx", "speed-onnx", 0.01, {}),
    "integers": Form("ONNX in integers", "text-integers", "digits-integers", "", 0.1, {}),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is asked: prompts and tokens of an answer, tokens read and written, callers at once.

    A measurement takes about so many ``seconds`` at most: a slow device reads and writes fewer tokens.
    """

    prompts: int = 20
    tokens: int = 32
    read: int = 512
    write: int = 128
    callers: Sequence[int] = (1, 8, 64)
    seconds: float = 30


@dataclass(frozen=True, slots=True)
class Setup:
    """What a check works on: a device, a form of models, where its inputs lie."""

    device: str
    form: Form
    inputs: Mapping[str, str]
    size: Size


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what was checked, what came of it for people, and the same in numbers."""

    check: str
    outcome: Literal["ok", "failed", "left out"]
    told: str
    figures: dict[str, Any] = field(default_factory=dict)


def text(setup: Setup) -> Row:
    """Greedy answers of the device and of the CPU, in float32 where the form has that."""

    def answers(device: str) -> tuple[list[Answer], Placement, int]:
        with opened(setup, setup.form.text, device, **setup.form.options) as model:
            asked = [[Message("user", question)] for question in QUESTIONS[: setup.size.prompts]]
            found = [greedy(model, messages, setup.size.tokens) for messages in asked]
            return found, model.placement, model.artifact.n_layer + 1  # the output counts as one

    expected, *_ = answers(CPU)
    found, placement, whole = answers(setup.device)
    label = f"text, {setup.form.label}{'' if setup.form is FORMS['integers'] else ' in f32'}"
    return compared(setup, label, expected, found, placement, whole)


def part(setup: Setup) -> Row:
    """The same with half of the layers on the device, by raw logits."""
    label = "half of the layers there"
    if setup.form is not FORMS["gguf"] or setup.device == CPU:
        return Row(f"{label}, {setup.form.label}", "left out", "all of the model is in one place")
    artifact = open_artifact(Path(setup.inputs[setup.form.text]))
    plans = [
        plan_engine(artifact, checked({"n_ctx": 1024, "device": device, **EXACT})) for device in (CPU, setup.device)
    ]
    half = replace(plans[1].placement, gpu_layers=max(1, artifact.n_layer // 2), reason="half of them")
    prompts = QUESTIONS[: setup.size.prompts]
    expected = walked(plans[0], prompts, setup.size.tokens)
    found = walked(replace(plans[1], placement=half), prompts, setup.size.tokens)
    margins = [margin for pair in zip(expected, found, strict=True) if (margin := margin_of_walks(*pair)) is not None]
    return agreement(f"{label}, {setup.form.label} in f32", len(prompts), margins, setup.form.limit, str(half))


def vision(setup: Setup) -> Row:
    """Answers about pictures, the vision tower on the device and the text tower on the CPU."""
    asked = list(pictures())[: setup.size.prompts]

    def answers(device: str) -> tuple[list[Answer], Placement]:
        with opened(setup, setup.form.digits, CPU, vision_device=device, **EXACT) as model:
            found = [
                greedy(model, [Message("user", [picture.image, picture.question])], 16, may_end=True)
                for picture in asked
            ]
            assert model.vision_placement
            return found, model.vision_placement

    expected, _ = answers(CPU)
    found, placement = answers(setup.device)
    right = sum(answer.text == picture.answer for answer, picture in zip(found, asked, strict=True))
    row = compared(setup, f"vision, {setup.form.label}", expected, found, placement)
    return replace(row, told=f"{row.told}; {right} of {len(asked)} right", figures={**row.figures, "right": right})


def sessions(setup: Setup) -> Row:
    """A conversation saved on the CPU and resumed on the device, and the other way: what is lost is told."""
    folder = Path(setup.inputs[setup.form.text]).parent
    told, figures, is_sound = [], {}, True
    for there, here in dict.fromkeys(((CPU, setup.device), (setup.device, CPU))):
        file = folder / f"{setup.form.label}-{there}.chat".replace(":", "-").replace(",", "-")
        with opened(setup, setup.form.text, there, **setup.form.options) as model:
            chat = model.chat()
            chat.send(QUESTIONS[0], temperature=0, max_tokens=16).result()
            chat.save(file)
            expected = chat.send(SECOND, temperature=0, max_tokens=16, logprobs=8).result()
        with opened(setup, setup.form.text, here, **setup.form.options) as model:
            chat = model.resume_chat(file)
            found = chat.send(SECOND, temperature=0, max_tokens=16, logprobs=8).result()
        known, prompt = found.timings.cached_tokens, found.timings.prompt_tokens
        margin = margin_of(expected, found)
        is_sound &= (chat.reread_reason is not None or known > prompt // 2) and (margin or 0) < setup.form.limit
        kept = (
            f"read again, which is told: {chat.reread_reason}" if chat.reread_reason else f"{known} of {prompt} known"
        )
        told.append(f"{there} to {here}: {kept}, {'the same answer' if margin is None else f'parts at {margin:.2g}'}")
        figures[f"{there} to {here}"] = {"known": known, "prompt": prompt, "reread": chat.reread_reason}
    return Row(f"sessions, {setup.form.label}", "ok" if is_sound else "failed", "; ".join(told), figures)


def speed(setup: Setup) -> Row:
    """Tokens/s of reading and writing, on the CPU and on the device; the file is quantized."""
    size, found = setup.size, {}
    for device in dict.fromkeys((CPU, setup.device)):
        with opened(setup, setup.form.speed, device, n_ctx=size.read + size.write) as model:
            both = (paced(model, True, size.read, size.seconds), paced(model, False, size.write, size.seconds))
            found[device] = {str(each.test): each.mean for each in both}
    here, there = found[setup.device], list(found[CPU].values())
    slower = [name for (name, mean), cpu in zip(here.items(), there, strict=True) if mean < cpu]
    told = ", ".join(f"{name} {mean:,.1f} tokens/s" for name, mean in here.items())
    if setup.device != CPU:
        told += f" (CPU {', '.join(f'{mean:,.1f}' for mean in there)})" + "; slower than the CPU" * bool(slower)
    return Row(f"speed, {setup.form.label}", "ok", told, found)


def callers(setup: Setup) -> Row:
    """Tokens/s of all callers together, for several numbers of them."""
    label, most = f"callers, {setup.form.label}", max(setup.size.callers)
    room = most * (setup.size.tokens + 64)  # which all share
    with opened(setup, setup.form.speed, setup.device, n_ctx=room, max_running=most) as model:
        if model.stats().max_running == 1:
            return Row(label, "left out", "the engine serves one after the other")
        together(model, 1, 2, setup.size.seconds)
        found = {count: together(model, count, setup.size.tokens, setup.size.seconds) for count in setup.size.callers}
    told = ", ".join(f"{count}: {each:,.1f}" for count, each in found.items())
    return Row(label, "ok", f"tokens/s of all together, by their number: {told}", {str(n): v for n, v in found.items()})


def memory(setup: Setup) -> Row:
    """What an open model takes, beside what was planned for it."""
    with opened(setup, setup.form.speed, setup.device):  # the engine is loaded, and the driver's own memory taken
        pass
    before, free = psutil.Process().memory_info().rss, free_on_gpus(setup)
    with opened(setup, setup.form.speed, setup.device, n_ctx=max(2048, setup.size.read)) as model:
        llama_bench.measure(model, llama_bench.tests([setup.size.read], [], [0]), repetitions=1)
        planned, where = model.context.needed, str(model.placement)
        taken = {"host": psutil.Process().memory_info().rss - before, "device": free - free_on_gpus(setup)}
    total = max(0, taken["host"]) + max(0, taken["device"])
    told = f"planned {planned / 1e6:,.0f} MB; taken {taken['host'] / 1e6:,.0f} MB of the host's"
    if free:
        told += f", {taken['device'] / 1e6:,.0f} of the device's, as its driver says"
    outcome: Literal["ok", "failed"] = "ok" if total <= planned + _TOLERATED else "failed"
    return Row(f"memory, {setup.form.label}", outcome, f"{told}; {where}", {"planned": planned, **taken})


CHECKS: dict[str, tuple[Callable[[Setup], Row], str]] = {
    "text": (text, "text"),
    "part": (part, "text"),
    "vision": (vision, "digits"),
    "sessions": (sessions, "text"),
    "speed": (speed, "speed"),
    "callers": (callers, "speed"),
    "memory": (memory, "speed"),
}
"""By name: the check, and which of a form's inputs it opens."""


# What the checks ask of a model.


def opened(setup: Setup, name: str, device: str, **options: Any) -> Model:
    return edge_llama.open(setup.inputs[name], **{"n_ctx": 1024, "device": device, **options})


def ends_of(model: Model) -> dict[int, float]:
    """A bias that forbids the end of an answer."""
    return {token: -1e4 for token in range(model.tokenizer.n_vocab) if model.tokenizer.is_end(token)}


def greedy(model: Model, messages: Sequence[Message], count: int, *, may_end: bool = False) -> Answer:
    """``count`` tokens, or fewer where the answer ``may_end``, with the likeliest at each place."""
    bias = {} if may_end else ends_of(model)
    return model.answer(messages, temperature=0, max_tokens=count, logprobs=8, logit_bias=bias).result()


def paced(model: Model, is_read: bool, count: int, seconds: float) -> llama_bench.Speed:
    """Reading or writing ``count`` tokens, three times; fewer where that would take more than ``seconds``."""

    def tests(tokens: int) -> list[llama_bench.Test]:
        return llama_bench.tests([tokens] if is_read else [], [] if is_read else [tokens], [0])

    # The second run: the first compiles a GPU's shaders.
    (trial,) = llama_bench.measure(model, tests(min(count, 64 if is_read else 4)), repetitions=2)
    fit = int(trial.samples[-1] * seconds)
    tokens = max(1, min(count, fit))
    (found,) = llama_bench.measure(model, tests(tokens), repetitions=max(1, min(3, fit // tokens)))
    return found


def together(model: Model, count: int, tokens: int, seconds: float) -> float:
    """Tokens/s of ``count`` callers who ask at once; what takes longer than ``seconds`` ends there."""
    bias, gate = ends_of(model), threading.Barrier(count)

    def one(number: int) -> tuple[int, float]:
        gate.wait()
        started = time.perf_counter()
        generation = model.generate(
            f"Caller {number} asks.", temperature=0, max_tokens=tokens, logit_bias=bias, deadline=seconds
        )
        with suppress(edge_llama.DeadlineError):
            generation.result()
        return generation.timings.generated_tokens, time.perf_counter() - started

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(one, range(count)))
    return sum(each for each, _ in found) / max(taken for _, taken in found)


def walked(plan: EnginePlan, prompts: Sequence[str], count: int) -> list[list[np.ndarray]]:  # type: ignore[type-arg]
    """For each prompt the logits, float32 ``(n_vocab,)``, of ``count`` greedy tokens."""
    tower, found = plan.open(cpu_threads()), []
    try:
        for prompt in prompts:
            sequence, tokens = OneSequence(tower), tower.tokenizer.encode(prompt)
            sequence.cut(0)
            rows: list[np.ndarray] = []  # type: ignore[type-arg]
            for _ in range(count):
                rows.append(sequence.decode(tokens).values.copy())
                tokens = [int(rows[-1].argmax())]
            found.append(rows)
    finally:
        tower.close()
    return found


def free_on_gpus(setup: Setup) -> int:
    """Bytes, as the drivers say; 0 where nothing of llama.cpp's is on a GPU."""
    if setup.form is not FORMS["gguf"] or setup.device == CPU:
        return 0
    from edge_llama.backends.llama_cpp.text import available_devices  # noqa: PLC0415 - loads native code

    return sum(device.free_bytes for device in available_devices() if device.kind == "gpu")


# Two devices' answers beside each other.


def margin_of(expected: Answer, found: Answer) -> float | None:
    """By how much the one token led the other where two greedy answers part; None if they are equal."""
    if expected.tokens == found.tokens:
        return None
    shorter = min(len(expected.tokens), len(found.tokens))
    at = next((at for at in range(shorter) if expected.tokens[at] != found.tokens[at]), shorter)
    if at < shorter:
        known = {each.token_id: each.logprob for each in expected.logprobs[at].top}
        return expected.logprobs[at].logprob - known.get(found.tokens[at], min(known.values()))
    longer = expected if len(expected.tokens) > shorter else found  # the other one ended here
    return longer.logprobs[at].top[0].logprob - longer.logprobs[at].top[1].logprob


def margin_of_walks(expected: Sequence[Any], found: Sequence[Any]) -> float | None:
    """The same of logits."""
    for one, other in zip(expected, found, strict=True):
        if one.argmax() != other.argmax():
            return float(one.max() - one[other.argmax()])
    return None


def compared(
    setup: Setup, label: str, expected: Sequence[Answer], found: Sequence[Answer], placement: Placement, whole: int = 0
) -> Row:
    """The row of greedy answers; failed, too, if the device was asked for and the ``whole`` tower is not there."""
    margins = [margin for pair in zip(expected, found, strict=True) if (margin := margin_of(*pair)) is not None]
    row = agreement(label, len(expected), margins, setup.form.limit, str(placement))
    if setup.device not in (CPU, "auto") and placement.device == CPU:
        return replace(row, outcome="failed", told=f"{row.told}: not where it was asked for")
    if 0 < placement.gpu_layers < whole:
        return replace(row, outcome="failed", told=f"{row.told}: not all {whole} layers are there")
    return row


def agreement(label: str, count: int, margins: Sequence[float], limit: float, where: str) -> Row:
    told = f"{count - len(margins)} of {count} greedy answers the CPU's"
    if margins:
        told += f", the others part at margins up to {max(margins):.2g} (median {statistics.median(margins):.2g})"
    is_sound = all(margin < limit for margin in margins)
    return Row(label, "ok" if is_sound else "failed", f"{told}; {where}", {"of": count, "margins": list(margins)})


# The process of a check.


def main(job: str) -> None:
    """What a child does: what ``job`` says, as :func:`job_of` and :func:`conversions_of` write it."""
    crash_probe.begin()
    given = json.loads(job)
    if "names" in given:
        row = converted(**given)
    else:
        row = run(given["check"], Setup(given["device"], FORMS[given["form"]], given["inputs"], Size(**given["size"])))
    crash_probe.end(json.dumps(asdict(row)))


def job_of(check: str, device: str, form: str, inputs: Mapping[str, str], size: Size) -> str:
    """The job of a check."""
    return json.dumps({"check": check, "device": device, "form": form, "inputs": dict(inputs), "size": asdict(size)})


def conversions_of(names: Iterable[str], folder: Path, *, is_quick: bool) -> str:
    """The job that makes the inputs of these names in ``folder``."""
    return json.dumps({"names": sorted(names), "folder": str(folder), "is_quick": is_quick})


def converted(names: Sequence[str], folder: str, is_quick: bool) -> Row:
    """The row of the conversions."""
    started, faults = time.monotonic(), []
    for name in names:
        try:
            make(name, Path(folder), is_quick=is_quick)
        except Exception as error:  # as a check's
            faults.append(f"{name}: {type(error).__name__}: {error}")
    seconds = time.monotonic() - started
    told = "; ".join(faults) or f"{', '.join(names)} in {seconds:.1f} s"
    return Row("conversions", "failed" if faults else "ok", told, {"seconds": seconds})


def run(check: str, setup: Setup) -> Row:
    """The check's row; whatever it raises makes it a failed one."""
    try:
        return CHECKS[check][0](setup)
    except Exception as error:  # a check that is wrong stops no other
        return Row(f"{check}, {setup.form.label}", "failed", f"{type(error).__name__}: {error}")
