#!/usr/bin/env python3
"""Prove text towers in integers on what stands in for NPUs: `make test-npu` prints the table of docs/npu.md.

    python scripts/npu.py                # every row
    python scripts/npu.py OpenVINO int4  # those whose names have these words in them

Qualcomm's emulator of its HTP, OpenVINO's CPU device, and onnxruntime-genai, which gets an environment of its own in
.cache, from PyPI. Models are the tests' small trained ones, converted on the spot. A row whose package isn't here is
left out, with the command that brings it. The exit code is 1 if a row fails. Needs the extra dev.
"""

import argparse
import itertools
import json
import operator
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from device_check import lacking
from device_checks import CPU, agreement, greedy, margin_of
from device_inputs import DIGITS, QUESTIONS, ROOT, TALK, pictures
from numpy.typing import NDArray

import edge_llama
from edge_llama import Answer, Message, Model
from edge_llama.backends.base import EngineState, OneSequence
from edge_llama.backends.onnxruntime import providers
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate
from edge_llama.cli.calibrate import calibrate
from edge_llama.compile import compile_for
from edge_llama.convert import convert
from edge_llama.host.devices import cpu_threads
from edge_llama.planning.engine_report import engines
from edge_llama.planning.options import checked
from edge_llama.planning.plan import plan_engine
from quant.onnx_recipe import STATIC

sys.path.insert(0, str(ROOT / "tests"))
sys.path.append(str(ROOT / "benchmarks"))

from peers import environment
from static_text import in_integers

NPU, OPENVINO = "npu:qnn", "openvino:cpu"
GENAI = ("onnxruntime-genai==0.15.2", "onnxruntime==1.32.0", "onnxruntime-qnn==2.7.0")
"""The last version of which pipelines are known to run; 0.18.0 gives them caches of another shape."""
N_CTX = 512
TOKENS, WRITTEN = 32, 16
"""Of a chat's answers together, and after a prompt whose logits are looked at."""
MARGIN = 0.1
"""What an NPU's own rounding may move, where logits reach 10: an answer may part from another one there."""
STORY = "Tell a very long story."
CITIES = {"Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo"}

Chat = Sequence[Answer]
Walk = Sequence[NDArray[np.float32]]
"""The logits before each of some greedy tokens, ``(n_vocab,)`` each."""


class Found(NamedTuple):
    """What came of a row, and whether that is what shall be."""

    told: str
    is_ok: bool


class Check(NamedTuple):
    """A row: what it is about, what must hold, the device that it needs, and who finds out, in a folder for models."""

    what: str
    goal: str
    device: str
    run: Callable[[Path], Found]


class LeftOutError(Exception):
    """A package that a row needs can't be had."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    words = parser.parse_args().words
    chosen = [check for check in CHECKS if all(word.lower() in check.what.lower() for word in words)]
    if not chosen:
        parser.error(f"no row has these words: {' '.join(words)}")
    states, outcomes = engines(), []
    print("| what | must hold | found | |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="edge-llama-npu-") as folder:
        for check in chosen:
            told, outcome = came_of(check, Path(folder), states)
            outcomes.append(outcome)
            told = " ".join(told.split()).replace("|", "/")
            print(f"| {check.what} | {check.goal} | {told} | {outcome} |", flush=True)
    return int("failed" in outcomes)


def came_of(check: Check, work: Path, states: Sequence[EngineState]) -> tuple[str, str]:
    """What a row says, and whether it is ok, failed or left out."""
    if how := lacking(check.device, "onnx", states):
        return how, "left out"
    try:
        found = check.run(work)
    except LeftOutError as error:
        return str(error), "left out"
    except Exception as error:  # a row that is wrong stops no other
        return f"{type(error).__name__}: {error}", "failed"
    return found.told, "ok" if found.is_ok else "failed"


# Rows.


def nodes(form: str, work: Path) -> Found:
    """All of both graphs are on the NPU."""
    with opened(small(work, form), NPU) as model:
        where = str(model.placement)
    return Found(where, where.count("all ") == 2 and "on the CPU" not in where)


def logits(form: str, work: Path) -> Found:
    """The NPU's beside those of the same graphs on the CPU, in proportion where they reach more than 10."""
    folder = small(work, form)
    asked = prompts(folder)
    off, largest = difference(*(walks(folder, device, asked) for device in (CPU, NPU)))
    return Found(f"{off:.3f} off where they reach {largest:.1f}", off <= MARGIN * max(1, largest / 10))


def answers(form: str, device: str, most_parted: int, work: Path) -> Found:
    """The whole tower there, and chats that are the CPU's, but for a few that part at a small margin."""
    folder = small(work, form)
    (_, expected), (where, found) = (chats(folder, each) for each in (CPU, device))
    return alike(expected, found, where, most_parted)


def llama4(work: Path) -> Found:
    """Both towers there. What parts at a near-tie of a router, by a larger margin, fails too: nothing looks for it."""
    folder, asked = seeing(work), list(pictures())

    def said(device: str) -> tuple[str, list[Chat]]:
        with opened(folder, device, n_ctx=256, vision_device=device) as model:
            messages = ([Message("user", [each.image, each.question])] for each in asked)
            return str(model.placement), [[greedy(model, each, WRITTEN, may_end=True)] for each in messages]

    (_, expected), (where, found) = (said(device) for device in (CPU, NPU))
    right = sum(answer.text == each.answer for (answer,), each in zip(found, asked, strict=True))
    told, is_ok = alike(expected, found, where, len(asked))
    return Found(f"{right} of {len(asked)} right; {told}", is_ok and right == len(asked))


def genai(form: str, work: Path) -> Found:
    """onnxruntime-genai's tokens, by its CPU and on the NPU, beside ours."""
    folder = small(work, form)
    same, count = same_in_genai(folder, folder, "cpu", "qnn")
    told = ", ".join(f"{provider}: {number} of {count} the same" for provider, number in same.items())
    return Found(told, all(number == count for number in same.values()))


def compiled(form: str, work: Path) -> Found:
    """What was compiled for the NPU, copied alone: the graphs that it was made of are not there."""
    folder = small(work, form)
    _, expected = chats(folder, NPU)  # before it opens by what was compiled
    alone = Path(shutil.move(compile_for(folder, NPU).output, work / f"{form} alone"))
    where, found = chats(alone, NPU)
    return alike(expected, found, where, 0)


def genai_compiled(form: str, work: Path) -> Found:
    """What onnxruntime-genai makes of compiled graphs: stated, since neither is ours."""
    folder = small(work, form)
    given = compile_for(folder, NPU).output
    try:
        same, count = same_in_genai(folder, given, "qnn")
    except OSError as error:
        return Found(str(error), True)
    return Found(f"{same['qnn']} of {count} the same", True)


def same_in_genai(folder: Path, given: Path, *providers: str) -> tuple[dict[str, int], int]:
    """By providers, how many of its answers on ``given`` are ours of ``folder`` on the CPU; and how many there are."""
    asked = prompts(folder)
    expected = [tokens(walk) for walk in walks(folder, CPU, asked)]
    used = set(itertools.chain(*asked, *expected))
    unused = next(token for token in itertools.count() if token not in used)
    job = {"folder": str(given), "prompts": asked, "count": WRITTEN, "unused": unused}
    found = {provider: in_genai({**job, "provider": provider}) for provider in providers}
    return {provider: sum(map(operator.eq, expected, theirs)) for provider, theirs in found.items()}, len(asked)


def by_itself(work: Path) -> Found:
    """What it costs to let OpenVINO choose, which takes bf16 where the processor has that: no more than stated."""
    folder = small(work, "f16 portable")
    asked = prompts(folder)
    exact = walks(folder, OPENVINO, asked)
    with openvino_told({"load_config": "{}"}):
        chosen = walks(folder, OPENVINO, asked)
    off, largest = difference(exact, chosen)
    same = sum(tokens(one) == tokens(other) for one, other in zip(exact, chosen, strict=True))
    return Found(f"{off:.2g} off where they reach {largest:.1f}; {same} of {len(asked)} answers the same", True)


def refused(form: str, work: Path) -> Found:
    """A folder that OpenVINO does not run whole says what to do."""
    folder = small(work, form)
    try:
        with opened(folder, OPENVINO):
            return Found("it opens", False)
    except edge_llama.EdgeLlamaError as error:
        return Found(str(error).replace(f"{folder}/", ""), "convert" in error.remedy)


CHECKS = (
    *itertools.chain.from_iterable(
        (
            Check(f"HTP, a small Llama, {form}: nodes", "0 on the CPU", NPU, partial(nodes, form)),
            Check(
                f"HTP, a small Llama, {form}: logits",
                "at most 0.1 off the CPU's where they reach 10",
                *(NPU, partial(logits, form)),
            ),
            Check(
                f"HTP, a small Llama, {form}: 20 chats, {TOKENS} greedy tokens each",
                f"18 are the CPU's, all part at margins below {MARGIN}",
                *(NPU, partial(answers, form, NPU, 2)),
            ),
        )
        for form in ("a16w8", "a16w4")
    ),
    Check(
        "HTP, a small Llama 4: text tower and pictures",
        f"it reads the digits; answers part at margins below {MARGIN}",
        *(NPU, llama4),
    ),
    Check(
        f"HTP, compiled, a16w8: 20 chats, {TOKENS} greedy tokens each, without the graphs that it was made of",
        "they are those of the graphs",
        *(NPU, partial(compiled, "a16w8")),
    ),
    Check(
        f"{GENAI[0].replace('==', ' ')}, the same folder: {WRITTEN} tokens after 4 prompts",
        "they are ours",
        *(NPU, partial(genai, "a16w8")),
    ),
    Check(f"{GENAI[0].replace('==', ' ')}, compiled", "stated", NPU, partial(genai_compiled, "a16w8")),
    *(
        Check(
            f"OpenVINO's CPU, {quant} portable: 20 chats, {TOKENS} greedy tokens each",
            "whole; they are ONNX Runtime's CPU's",
            *(OPENVINO, partial(answers, f"{quant} portable", OPENVINO, 0)),
        )
        for quant in ("f16", "int8", "int4")
    ),
    Check("OpenVINO's CPU, f16 portable, by itself (load_config {}): logits beside f32", "stated", OPENVINO, by_itself),
    *(
        Check(f"OpenVINO's CPU, {quant} of Microsoft's operators", "refused", OPENVINO, partial(refused, quant))
        for quant in ("int8", "int4")
    ),
)


# Models.


def small(work: Path, form: str) -> Path:
    """The small Llama that chats: in ``a16w8`` or ``a16w4`` for NPUs, or else as ``int4``, ``int4 portable``, ..."""
    folder, quant = work / form, form.split(maxsplit=1)[0]
    if not folder.exists() and quant in STATIC:
        in_integers(TALK, work, quant, n_ctx=N_CTX)
    elif not folder.exists():
        convert(TALK, folder, to="onnx", quant=quant, portable=form.endswith("portable"))
    return folder


def seeing(work: Path) -> Path:
    """The small Llama 4 that reads digits, both towers in integers by ranges of pictures such as it learned from."""
    from llama4_training import dialogues  # noqa: PLC0415 - torch takes seconds to load

    rng, samples = np.random.default_rng(3), []
    for number in range(9):
        (drawn,) = dialogues(("single", "across", "stacked")[number % 3], 1, rng)
        text, picture = work / f"{number}.txt", work / f"{number}.png"
        asked = f"{drawn.turns[0].question}<|eot|><|header_start|>assistant<|header_end|>\n\n{drawn.answer}<|eot|>"
        text.write_text(asked * 3, "utf-8")
        drawn.images[0].save(picture)
        samples += [text, picture]
    ranges = work / "text.json", work / "vision.json"
    convert(DIGITS, work / "float", tower="vision", vision_quant="f32")
    calibrate(str(DIGITS), [*samples, ranges[0]], quiet=True)
    calibrate(str(work / "float"), [*samples[1::2], ranges[1]], quiet=True)
    sizes: Any = {"n_ctx": 256, "window": 32}
    convert(DIGITS, work / "seeing", to="onnx", quant="a16w8", vision_quant="a16w8", calibration=ranges, **sizes)
    return work / "seeing"


# What they are asked.


def opened(folder: Path, device: str, **options: Any) -> Model:
    """The model in ``folder``, all of whose nodes the device must take."""
    return edge_llama.open(folder, **{"n_ctx": N_CTX, "device": device, "strict_device": True, **options})


def chats(folder: Path, device: str) -> tuple[str, list[Chat]]:
    """Where the model is, and its answers in 20 chats, each of which begins with another question."""
    with opened(folder, device) as model:
        return str(model.placement), [chat(model, first) for first in range(len(QUESTIONS))]


def chat(model: Model, first: int) -> Chat:
    """Greedy answers to one question after the other, until they have `TOKENS` together.

    Each ends where the model ends it: what it would say after that it never learned, and there near-ties are common.
    """
    begun, said = model.chat(temperature=0), []
    for question in (*QUESTIONS[first:], *QUESTIONS[:first]):
        room = TOKENS - sum(len(answer.tokens) for answer in said)
        if not room:
            break
        said.append(begun.send(question, max_tokens=room, logprobs=8).result())
    return said


def prompts(folder: Path) -> list[list[int]]:
    """Token ids of chats of one window and of more, each before an answer of more than `WRITTEN` tokens."""
    turns = [
        message
        for where, city in CITIES.items()
        for message in (
            Message("user", f"What is the capital of {where}?"),
            Message("assistant", f"The capital of {where} is {city}."),
        )
    ]
    known = (turns[: 2 * count] for count in range(len(CITIES) + 1))
    with opened(folder, CPU) as model:
        return [list(model.template.tokens([*each, Message("user", STORY)])) for each in known]


def walks(folder: Path, device: str, asked: Sequence[Sequence[int]]) -> list[Walk]:
    """Of each prompt, the logits before `WRITTEN` greedy tokens."""
    options = checked({"n_ctx": N_CTX, "device": device, "strict_device": True})
    plan = plan_engine(open_artifact(locate(folder)), options)
    with closing(plan.open(cpu_threads())) as tower:
        return [walk(OneSequence(tower), ids) for ids in asked]


def walk(sequence: OneSequence, ids: Sequence[int]) -> Walk:
    size, found = sequence.tower.n_batch, []
    sequence.cut(0)
    *before, last = (ids[at : at + size] for at in range(0, len(ids), size))
    for part in before:
        sequence.decode(part)
    for _ in range(WRITTEN):
        found.append(sequence.decode(last).values.copy())
        last = [int(found[-1].argmax())]
    return found


def in_genai(job: Mapping[str, Any]) -> list[list[int]]:
    """What genai_pipeline.py says to a job."""
    try:
        python = environment("onnxruntime-genai-pipeline", *GENAI)
    except subprocess.CalledProcessError as error:
        raise LeftOutError(f"no environment for it: pip install {' '.join(GENAI)}") from error
    command = [python, "-I", Path(__file__).with_name("genai_pipeline.py")]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"its process ended with {done.returncode}: {done.stderr[-500:]}")
    return list(json.loads(done.stdout))


@contextmanager
def openvino_told(options: dict[str, str]) -> Iterator[None]:
    """OpenVINO's provider gets these options, in place of those that have it compute in f32."""
    kept = providers._OPTIONS
    providers._OPTIONS = {**kept, "OpenVINOExecutionProvider": lambda *_: options}
    try:
        yield
    finally:
        providers._OPTIONS = kept


# Two devices beside each other.


def alike(expected: Sequence[Chat], found: Sequence[Chat], where: str, most_parted: int) -> Found:
    """How many chats are the same, and at which margins the others part."""
    partings = [
        next((margin for pair in zip(*both, strict=False) if (margin := margin_of(*pair)) is not None), None)
        for both in zip(expected, found, strict=True)
    ]
    margins = [margin for margin in partings if margin is not None]
    row = agreement("", len(expected), margins, MARGIN, where)
    return Found(row.told, row.outcome == "ok" and len(margins) <= most_parted)


def difference(expected: Sequence[Walk], found: Sequence[Walk]) -> tuple[float, float]:
    """By how much logits differ at most where both walks read the same, and how large those expected are there."""
    pairs = [pair for both in zip(expected, found, strict=True) for pair in until_parted(*both)]
    off = max(float(np.abs(one - other).max()) for one, other in pairs)
    return off, max(float(np.abs(one).max()) for one, _ in pairs)


def until_parted(expected: Walk, found: Walk) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Both walks' logits, up to those by which they choose another token."""
    for one, other in zip(expected, found, strict=True):
        yield one, other
        if one.argmax() != other.argmax():
            return


def tokens(walk: Walk) -> list[int]:
    """The tokens that a walk chooses."""
    return [int(row.argmax()) for row in walk]


if __name__ == "__main__":
    sys.exit(main())
