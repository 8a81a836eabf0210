"""ONNX folders beside onnxruntime-genai and llama.cpp, pairs interleaved A B, B A, in the same run.

    .venv/bin/python benchmarks/onnx_folders.py genai       # tg128, pp512 against onnxruntime-genai on the same folder
    .venv/bin/python benchmarks/onnx_folders.py llama.cpp   # against llama-bench on Q4_0 of the same checkpoint
    .venv/bin/python benchmarks/onnx_folders.py memory      # RssAnon that opening a model adds, first and second time
    .venv/bin/python benchmarks/onnx_folders.py conversion  # against onnxruntime-genai's model builder
    .venv/bin/python benchmarks/onnx_folders.py answers     # KL and top-1 of 4 and 8 bits against their own floats

Options: --pairs 7, --threads (of both), --layers (of the synthetic checkpoint that is converted).

The checkpoint is SmolLM2-135M as its package has it, taken back to floats; 4 bits are blocks of 32 without zero points,
the same numbers as Q4_0. Each run is a process of its own. Ours goes the whole way of an answer, as in generation.py.
onnxruntime-genai has an environment of its own in .cache; its model builder needs torch, which this one has.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from conversion import measured, synthetic, warm
from generation import bench, compare, spread, worker
from peers import CACHE, ROOT, environment, packages_of

from edge_llama.host import devices

GENAI = "0.18.0"
PAGES = ("docs/llama4.md", "docs/conversion.md", "README.md")
"""Text that is newer than the model."""
CLIENT = """
import json, sys, time
import onnxruntime_genai as genai
job = json.loads(sys.argv[1])
config = genai.Config(job["folder"])
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": job["threads"]}}}}))
model = genai.Model(config)
def generator(room):
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=room, do_sample=False)
    return genai.Generator(model, params)
def tokens(generator, count):
    started = time.perf_counter()
    for _ in range(count):
        generator.generate_next_token()
    return count / (time.perf_counter() - started)
warm = generator(64)
warm.append_tokens(job["ids"][:8])
tokens(warm, 4)
reading = generator(job["prompt"] + 8)
started = time.perf_counter()
reading.append_tokens(job["ids"][: job["prompt"]])
reading.generate_next_token()
read = job["prompt"] / (time.perf_counter() - started)
writing = generator(job["count"] + 16)
writing.append_tokens(job["ids"][:8])
writing.generate_next_token()
print(json.dumps({"read": read, "write": tokens(writing, job["count"])}))
"""
OPEN = """
import json, re, sys
import onnxruntime
def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
import edge_llama
before = anonymous()
with edge_llama.open(sys.argv[1], n_ctx=1024) as model:
    model.generate("Hello", temperature=0, max_tokens=4).result()
    print(json.dumps({"added": anonymous() - before, "cache": model.context.bytes}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=ROWS)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=devices.cpu_threads())
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args()
    print(f"{devices.cpu().name}, {options.pairs} pairs, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    ROWS[options.what](options)


def genai(options: argparse.Namespace) -> None:
    for quant in ("int4", "int8"):
        print(f"SmolLM2, {quant}")
        folder = onnx(quant)
        compare(options.pairs, lambda: ours(folder, options), lambda: theirs(folder, options), ">= 1.0")  # noqa: B023


def llama_cpp(options: argparse.Namespace) -> None:
    folder, options.model = onnx("int4"), gguf("q4_0")

    def peer() -> dict[str, float]:
        read, write = bench(options, "-p", 512, "-n", 128)
        return {"pp512": read, "tg128": write}

    compare(options.pairs, lambda: ours(folder, options), peer, "tg128 >= 1.1, pp512 >= 0.9")


def ours(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    fixed = {"model": str(folder), "threads": options.threads}
    return {
        "pp512": worker("answer", **fixed, n_ctx=520, prompt=512, count=1)["read"],
        "tg128": worker("answer", **fixed, n_ctx=136, prompt=8, count=128)["write"],
    }


def theirs(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    ids = np.random.default_rng(1).integers(1000, 40000, 512).tolist()
    job = json.dumps({"folder": str(folder), "threads": options.threads, "ids": ids, "prompt": 512, "count": 128})
    done = run([genai_python(), "-c", CLIENT, job])
    return {"pp512": done["read"], "tg128": done["write"]}


def memory(options: argparse.Namespace) -> None:
    """Of a process that has imported onnxruntime; later weights are packed in a file, unless told to keep none."""
    folder = onnx("int4")
    with_empty_cache = CACHE / "empty"
    shutil.rmtree(with_empty_cache, ignore_errors=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(with_empty_cache)}
    for label in ("first", *["later"] * options.pairs, "packed anew"):
        kept = {"EDGE_LLAMA_PREPACKED": "0"} if label == "packed anew" else {}
        found = run([sys.executable, "-c", OPEN, folder], environment | kept)
        print(f"  {label}: {found['added'] / 1e6:.0f} MB added, of which KV cache {found['cache'] / 1e6:.0f} MB")
    disk = sum(path.stat().st_size for path in with_empty_cache.rglob("*") if path.is_file())
    print(f"  on disk: {disk / 1e6:.0f} MB of packed weights, for {folder_bytes(folder) / 1e6:.0f} MB of model")


def conversion(options: argparse.Namespace) -> None:
    checkpoint = synthetic(options.layers)
    warm(checkpoint)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    print(f"{checkpoint.name}: {size / 1e9:.2f} GB of bf16 to int4, warm cache")
    output, pairs = CACHE / "onnx-out", []
    mine = [str(Path(sys.executable).with_name("edge-llama")), "convert", str(checkpoint), str(output)]
    mine += ["--to", "onnx", "--json"]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "unused", "-i", str(checkpoint)]
    builder += ["-o", str(output), "-p", "int4", "-e", "cpu", "-c", str(CACHE / "builder")]
    for _ in range(options.pairs):
        found = []
        for command, path in ((mine, ""), (builder, str(genai_packages()))):
            shutil.rmtree(output, ignore_errors=True)
            seconds, peak, out = measured(command, os.environ | ({"PYTHONPATH": path} if path else {}))
            sync = json.loads(out)["sync_seconds"] if command is mine else 0.0  # the builder leaves it to the system
            found.append((seconds - sync, peak))
            print(f"    {seconds - sync:.1f} s + {sync:.1f} s fsync, peak {peak / 1e6:,.0f} MB", flush=True)
        pairs.append(found)
    shutil.rmtree(output, ignore_errors=True)
    for index, name in enumerate(("edge-llama", "model builder")):
        seconds, peaks = zip(*[pair[index] for pair in pairs], strict=True)
        print(f"  {name}: {spread(list(seconds), '.1f')} s, peak {max(peaks) / 1e6:,.0f} MB RssAnon")
    ratios = [pair[1][0] / pair[0][0] for pair in pairs]
    less = statistics.median(pair[1][1] / pair[0][1] for pair in pairs)
    print(f"  ratio {spread(ratios, '.2f')} in time, {less:.1f} in memory; goals >= 5, >= 5")


def answers(_options: argparse.Namespace) -> None:
    """Activations in 8 bits: what that alone changes, since the floats are those that the file holds."""
    sys.path.insert(0, str(ROOT / "tests"))
    from onnx_graphs import TextGraph, kl, with_weights  # noqa: PLC0415 - needs the test extra

    from edge_llama.files.onnx_text import read_onnx_text  # noqa: PLC0415
    from edge_llama.prompts.hf_tokenizer import HFTokenizer  # noqa: PLC0415

    folders = {"int4": onnx("int4"), "int8": onnx("int8"), "int4 --portable": onnx("int4", "--portable")}
    for name, folder in folders.items():
        tokenizer = HFTokenizer(read_onnx_text(folder / "model.onnx"))
        rounded, whole = TextGraph(folder), TextGraph(onnx("f32"), with_weights(onnx("f32"), folder))
        found: list[tuple[float, bool]] = []
        for page in PAGES:
            rounded.forget()
            whole.forget()
            ids = tokenizer.encode((ROOT / page).read_text("utf-8"))[:1000]
            pairs = [(whole.feed([token]), rounded.feed([token])) for token in ids]
            found += [(kl(*pair), pair[0].argmax() == pair[1].argmax()) for pair in pairs]
            report(f"{name}, {page}", found[-len(ids) :])
        report(f"{name}, all", found)


def report(what: str, found: list[tuple[float, bool]]) -> None:
    divergence, agreed = np.mean(found, axis=0)
    print(f"  {what}: {len(found)} tokens, KL {divergence:.5f}, top-1 {agreed:.1%}", flush=True)


# What is compared.


@cache
def checkpoint_folder() -> Path:
    """SmolLM2 as a Hugging Face folder in float32."""
    return converted("smollm2-f32", "smollm2", "--to", "safetensors", "--quant", "f32")


@cache
def onnx(quant: str, *options: str) -> Path:
    name = "".join(("smollm2-onnx-", quant, *options))
    return converted(name, str(checkpoint_folder()), "--to", "onnx", "--quant", quant, *options)


def gguf(quant: str) -> Path:
    return converted(f"smollm2-{quant}.gguf", str(checkpoint_folder()), "--quant", quant)


def converted(name: str, source: str, *how: str) -> Path:
    output = CACHE / name
    command = [str(Path(sys.executable).with_name("edge-llama")), "convert", source, str(output), *how, "--force"]
    subprocess.run([*command, "--quiet"], check=True)
    return output


def genai_python() -> Path:
    return environment("onnxruntime-genai", f"onnxruntime-genai=={GENAI}")


def genai_packages() -> Path:
    """Where the package lies: its model builder runs in this environment, which has torch and transformers."""
    return packages_of(genai_python())


def run(command: list[Any], environment: Any = None) -> dict[str, float]:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment or os.environ
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


ROWS = {"genai": genai, "llama.cpp": llama_cpp, "memory": memory, "conversion": conversion, "answers": answers}

if __name__ == "__main__":
    main()
