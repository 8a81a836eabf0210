#!/usr/bin/env python3
"""Whether edge-llama on ARM64 gives what it gives on x86-64: bytes of files, texts, the engine's check. As root.

usage: arm64.py [--all] [--architecture armv8-a|dotprod|i8mm] [--folder DIR]

Here both run on an x86-64 machine, the ARM64 side under qemu (`arm64_root.py` sets it up). A line for each comparison;
the exit code is 1 if one differs. ``--all`` converts the suite's small checkpoints too, by every recipe.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arm64_root import ARCHITECTURES, PROCESSOR, Emulated, set_up
from device_inputs import QUESTIONS
from engine_source import ROOT, cache_folder

# Of each conversion, given as [source, output, options]: the SHA-256 of every file, or why it was refused.
CONVERT = """
import hashlib, json, sys
from pathlib import Path
import converters
from edge_llama.errors import EdgeLlamaError
for source, output, options in json.load(sys.stdin):
    output = Path(output)
    try:
        converters.convert(source, output, force=True, **options)
        files = [output] if output.is_file() else sorted(file for file in output.rglob("*") if file.is_file())
        found = {str(file.relative_to(output.parent)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    except EdgeLlamaError as error:
        found = {"refused": error.message}
    print(json.dumps(found), flush=True)
"""
# Greedy answers, given [file, prompts]: of each the text, and at each place the likeliest tokens' log-probabilities.
ANSWER = """
import json, sys
import edge_llama
file, prompts = json.load(sys.stdin)
settings = {"flash_attention": False, "kv_format": "f16", "n_batch": 512, "threads": 2, "n_ctx": 512}
with edge_llama.open(file, **settings) as model:
    for prompt in prompts:
        answer = model.chat().send(prompt, temperature=0, max_tokens=16, logprobs=4).result()
        tops = [[[top.token_id, top.logprob] for top in each.top] for each in answer.logprobs]
        print(json.dumps({"text": answer.text, "tokens": answer.tokens, "tops": tops}), flush=True)
"""
# What a model with eyes says of a picture, given [folder, picture].
LOOK = """
import json, sys
import edge_llama
folder, picture = json.load(sys.stdin)
with edge_llama.open(folder, flash_attention=False, kv_format="f32", n_batch=512, threads=2, n_ctx=512) as model:
    print(model.chat().send("Which digits are these?", images=[picture], temperature=0).result().text)
"""
CLI = ("-c", "from edge_llama.cli import main; main()")
RECIPES = ("q4_0", "q4_k_m", "q6_k", "q8_0")
PROMPTS = ("What is the capital of France?", "Count from one to five.", "Name three colours.")
Conversion = tuple[str, str, dict[str, Any]]


class Checks:
    """Both sides, and what was found different."""

    def __init__(self, emulated: Emulated) -> None:
        self.emulated = emulated
        self.failed: list[str] = []

    def same(self, name: str, here: object, there: object) -> None:
        """Print a line, and remember a difference."""
        print(f"{'same' if here == there else 'DIFFERS'}  {name}", flush=True)
        if here != there:
            self.failed.append(name)
            print(f"  x86-64: {here}\n  ARM64:  {there}", flush=True)

    def here(self, arguments: Sequence[str], text: str = "", **variables: str) -> str:
        """What Python prints on x86-64, in the folder that both sides share; ``text`` is its input."""
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        return _output([sys.executable, *arguments], text, env=environment, cwd=self.emulated.work)

    def there(self, arguments: Sequence[str], text: str = "", **variables: str) -> str:
        """The same on ARM64; how long it took is told."""
        start = time.monotonic()
        printed = _output(self.emulated.command(arguments, variables), text)
        print(f"         ({time.monotonic() - start:.0f} s under emulation)", flush=True)
        return printed


def _output(command: Sequence[str], text: str, **options: Any) -> str:
    """What a command writes to stdout; SystemExit with what it complains of."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{command[-3:]} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="edge-llama on ARM64 (under qemu) beside x86-64")
    parser.add_argument("--all", action="store_true", help="every recipe on the suite's small checkpoints, too")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="i8mm")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "arm64")
    options = parser.parse_args()
    checks = Checks(set_up(options.folder.resolve(), options.architecture))
    check_devices(checks)
    check_conversions(checks, smollm2(checks))
    check_texts(checks)
    check_vision(checks)
    if options.all:
        check_compiled_kernels(checks)
        check_conversions(checks, small_checkpoints(checks))
    if checks.failed:
        sys.exit(f"{len(checks.failed)} differ: {', '.join(checks.failed)}")
    print("ARM64 gives what x86-64 gives")


def check_devices(checks: Checks) -> None:
    """The engine's check in a child process, the processor's name, and that no kernel is refused."""
    told = json.loads(checks.there([*CLI, "devices", "--check", "--json"]))
    engine = told["engines"][0]
    found = {
        "processor": f"{told['cpu']['name']}, {told['cpu']['machine']}",
        "decodes": bool(engine["checked"]) and not engine["problem"],
        "refused": "refused" in told["kernels"].replace("for what is refused", ""),
    }
    wanted = {"processor": f"{PROCESSOR}, aarch64", "decodes": True, "refused": False}
    checks.same("devices: the processor's name, the engine decodes, no kernel is refused", wanted, found)


def smollm2(checks: Checks) -> list[Conversion]:
    """The built-in model, as a checkpoint that both sides read, to what people convert to most."""
    if not (checks.emulated.work / "smollm2").is_dir():
        checks.here([*CLI, "convert", "smollm2", "smollm2", "--to", "safetensors"])
    files = [("smollm2", f"smollm2-{quant}.gguf", {"quant": quant}) for quant in RECIPES]
    return [*files, ("smollm2", "smollm2-int4", {"quant": "int4", "to": "onnx"})]


def check_conversions(checks: Checks, conversions: Sequence[Conversion]) -> None:
    """Each on both sides: files of the same names and bytes, or the same refusal."""
    for source in dict.fromkeys(conversion[0] for conversion in conversions):
        of_source = [conversion for conversion in conversions if conversion[0] == source]
        both = zip(
            of_source, _converted(checks, "x86-64", of_source), _converted(checks, "arm64", of_source), strict=True
        )
        for (_, output, _), here, there in both:
            checks.same(f"{output}{': refused' * ('refused' in here)}", here, there)


def _converted(checks: Checks, side: str, conversions: Sequence[Conversion], **variables: str) -> list[Any]:
    """What came of each, in a process for all of them."""
    (checks.emulated.work / side).mkdir(exist_ok=True)
    python = checks.there if side == "arm64" else checks.here
    asked = [[source, f"{side}/{output}", options] for source, output, options in conversions]
    printed = python(["-c", CONVERT], json.dumps(asked), **variables).replace(f"{side}/", "")
    return [json.loads(line) for line in printed.splitlines()]


def check_texts(checks: Checks) -> None:
    """Greedy answers: x86-64's; of SmolLM2, whose files ARM64 wrote, at most parting at near-ties.

    The suite's small model is asked what it was trained to answer: elsewhere two tokens may be as likely. Kernels round
    activations to 8 bits, so that log-probabilities differ by some tenths where SmolLM2's residual is largest. A token
    that leads by no more than they differed before may come second there.
    """
    shutil.copy(ROOT / "tests" / "data" / "small_talk.gguf", checks.emulated.work)
    for file, prompts in (
        ("small_talk.gguf", QUESTIONS),
        ("arm64/smollm2-q4_k_m.gguf", PROMPTS),
        ("arm64/smollm2-q4_0.gguf", PROMPTS),
    ):
        asked = json.dumps([file, prompts])
        here, there = (
            list(map(json.loads, run(["-c", ANSWER], asked).splitlines())) for run in (checks.here, checks.there)
        )
        noise = max(_noise(*both) for both in zip(here, there, strict=True)) if "/" in file else 0
        for prompt, ours, theirs in zip(prompts, here, there, strict=True):
            name, lead = f"{file}: {prompt} {ours['text']!r}", _lead(ours, theirs)
            if lead is not None and lead <= noise:
                told = f"it parts where a token leads by {lead:.2g}, of {noise:.2g} that they differ before"
                print(f"near     {name}: {told}: {theirs['text']!r}", flush=True)
            else:
                checks.same(name, ours["text"], theirs["text"])


def _lead(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | None:
    """By how much our token led the next one where two answers part; None if they don't."""
    for one, other, (first, second, *_) in zip(ours["tokens"], theirs["tokens"], ours["tops"], strict=False):
        if one != other:
            return float(first[1] - second[1])
    return None


def _noise(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """The most by which log-probabilities of the same tokens differ until two answers part."""
    pairs = zip(ours["tokens"], theirs["tokens"], ours["tops"], theirs["tops"], strict=False)
    same = ((dict(tops[0]), dict(tops[1])) for one, other, *tops in itertools.takewhile(lambda p: p[0] == p[1], pairs))
    return max((abs(here[token] - there[token]) for here, there in same for token in here.keys() & there), default=0.0)


def check_vision(checks: Checks) -> None:
    """Both towers of the suite's small model that reads digits, with each engine for the vision tower."""
    digits = checks.emulated.work / "digits"
    shutil.copytree(ROOT / "tests" / "data" / "llama4_digits", digits, dirs_exist_ok=True)
    shutil.copy(ROOT / "docs" / "digits.png", checks.emulated.work)
    towers: dict[str, dict[str, Any]] = {
        "gguf": {"vision_to": "gguf"},
        "onnx": {"vision_quant": "f32"},
    }
    check_conversions(checks, [("digits", f"digits-{name}", {"quant": "f32", **how}) for name, how in towers.items()])
    for name in towers:
        asked = json.dumps([f"arm64/digits-{name}", "digits.png"])
        here, there = (run(["-c", LOOK], asked) for run in (checks.here, checks.there))
        checks.same(f"vision by {name}: {here.strip()!r}", here, there)


def check_compiled_kernels(checks: Checks) -> None:
    """Numba's code for ARM64 in place of ggml's: the same bytes. Compiling it takes minutes the first time."""
    conversions = [("smollm2", f"smollm2-{quant}-compiled.gguf", {"quant": quant}) for quant in ("q4_k_m", "q4_0")]
    there = _converted(checks, "arm64", conversions, EDGE_LLAMA_KERNELS="compiled")
    for (_, output, _), ours, theirs in zip(conversions, there, _converted(checks, "x86-64", conversions), strict=True):
        checks.same(output, theirs, ours)


def small_checkpoints(checks: Checks) -> list[Conversion]:
    """The suite's small checkpoints of each family, to every recipe."""
    sys.path.insert(0, str(ROOT / "tests"))
    import checkpoints  # noqa: PLC0415 - the tests' own
    import families  # noqa: PLC0415
    import llama4  # noqa: PLC0415

    from quant.onnx_recipe import RECIPES as ONNX_RECIPES  # noqa: PLC0415
    from quant.recipe import RECIPES as GGUF_RECIPES  # noqa: PLC0415

    whole = checkpoints.Shape(hidden=256, ffn=512)  # rows of whole super-blocks; the others' fall back
    makers = {
        "llama2": lambda folder: checkpoints.llama2(folder, shape=whole, dtype="F16"),
        "llama3": lambda folder: checkpoints.llama3(folder, shape=whole, dtype="BF16"),
        "smollm": checkpoints.smollm,
        "llama4": llama4.text_only,
        **{name: getattr(families, name) for name in ("mistral", "mixtral", "qwen2", "qwen3", "smollm3", "gemma3")},
    }
    for name, make in makers.items():
        if not (checks.emulated.work / name).is_dir():
            make(checks.emulated.work / name)
    quants = [quant for quant, recipe in GGUF_RECIPES.items() if not recipe.needs_importance]
    files = [(name, f"{name}-{quant}.gguf", {"quant": quant}) for name in makers for quant in quants]
    folders = [
        (name, f"{name}-{quant}{'-portable' * portable}", {"quant": quant, "to": "onnx", "portable": portable})
        for name in makers
        for quant in ONNX_RECIPES
        for portable in (False, True)
    ]
    return [*files, *folders]


if __name__ == "__main__":
    main()
