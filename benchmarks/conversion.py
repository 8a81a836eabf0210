"""Time and memory of conversions, beside llama.cpp's converter and quantizer in the same run.

    .venv/bin/python benchmarks/conversion.py speed  [--rounds 5]     # 1.07B weights: ours and theirs, interleaved
    .venv/bin/python benchmarks/conversion.py memory [--layers 64]    # peak memory at one checkpoint size
    .venv/bin/python benchmarks/conversion.py first  [--rounds 5]     # SmolLM2's first conversion on a machine
    .venv/bin/python benchmarks/conversion.py sizes  [--rounds 3]     # from 0.1 to 8 GB: results/conversion_sizes.json
    .venv/bin/python benchmarks/conversion.py experts                 # Llama 4 Scout's real sizes, on files with holes

The checkpoint has the shapes of Llama-3.2-1B with the built-in model's vocabulary, random bf16 weights, and as many
layers as asked (16: 1.07B weights, 2.15 GB). It is written to ``.cache/`` once, and read once before timing (warm).
Both sides get two threads. Memory is RssAnon summed over the process tree, sampled every 20 ms: what a process needs
for itself, without the pages of files that the kernel may drop. Ours waits until the data is on the disk (fsync);
theirs does not: that time is taken out and shown. Kernels lie compiled, as on every run but a machine's first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from peers import CACHE, ROOT, convert_command, quantize_command

from edge_llama.files.artifact import converted_path
from quant.recipe import RECIPES

THREADS = 2
HEAD_DIM = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds (without our fsync), peak RssAnon in bytes, seconds of fsync, bytes written."""

    seconds: float
    peak: int
    sync: float
    written: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "first", "sizes", "experts"])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quants", nargs="+", default=["q4_k_m", "q8_0"])
    options = parser.parse_args()
    if options.what == "first":
        first(options.rounds)
    elif options.what == "sizes":
        sizes(options.rounds)
    elif options.what == "experts":
        experts(options.quants)
    else:
        compared(options)


def compared(options: argparse.Namespace) -> None:
    checkpoint = synthetic(options.layers)
    warm(checkpoint)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    print(f"{checkpoint.name}: {size / 1e9:.2f} GB of bf16, {THREADS} threads, warm cache")
    for quant in options.quants:
        if options.what == "memory":
            run = ours(checkpoint, quant)
            print(f"  {quant}: peak {run.peak / 1e6:.0f} MB, {run.seconds:.1f} s + {run.sync:.1f} s fsync")
        else:
            compare(checkpoint, quant, options.rounds)


def first(rounds: int) -> None:
    """A small model's first conversion ever: the compiler must not be felt."""
    checkpoint = converted_path().parent / "smollm2"
    warm(checkpoint)
    pairs = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as empty:
            nothing_compiled = ours(checkpoint, "q4_k_m", XDG_CACHE_HOME=empty)
        pairs.append((nothing_compiled.seconds, ours(checkpoint, "q4_k_m", EDGE_LLAMA_KERNELS="ggml").seconds))
    ratios = [ggml / mine for mine, ggml in pairs]
    print(
        f"SmolLM2 to q4_k_m, whole process: first run ever {statistics.median(pair[0] for pair in pairs):.2f} s, "
        f"ggml's kernels {statistics.median(pair[1] for pair in pairs):.2f} s, "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def sizes(rounds: int) -> None:
    """Seconds by checkpoint size: ours, the peer's, and what copying that much to the disk takes."""
    rows = []
    for checkpoint in (synthetic(6, SMALL), *map(synthetic, (7, 16, 31, 64))):
        warm(checkpoint)
        size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        rounds_here = rounds if size < 5e9 else 1
        runs = [
            (ours(checkpoint, "q4_k_m").seconds, theirs(checkpoint, "q4_k_m").seconds, copied(checkpoint))
            for _ in range(rounds_here)
        ]
        mine, peer, disk = (statistics.median(column) for column in zip(*runs, strict=True))
        rows.append({"bytes": size, "edge-llama": mine, "llama.cpp": peer, "disk": disk})
        print(f"{size / 1e9:5.2f} GB: edge-llama {mine:.1f} s, llama.cpp {peer:.1f} s, disk {disk:.1f} s", flush=True)
        (ROOT / "benchmarks/results/conversion_sizes.json").write_text(json.dumps(rows, indent=1) + "\n")


def experts(quants: Sequence[str]) -> None:
    """Scout's text tower: the plan of all layers, then four layers of which the last has 4 experts, or 16."""
    sys.path.insert(0, str(ROOT / "tests"))
    import sparse_llama4  # noqa: PLC0415 - needs the test extra

    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        whole = sparse_llama4.text_tower(Path(folder) / "all", **sparse_llama4.SCOUT)
        command = [str(Path(sys.executable).with_name("edge-llama")), "convert", str(whole), "x.gguf", "--dry-run"]
        seconds, peak, out = measured([*command, "--json"])
        size = json.loads(out)["source_bytes"]
        print(f"Scout, 48 layers, {size / 1e9:.0f} GB: planned in {seconds:.1f} s, peak {peak / 1e6:.0f} MB")
        for n_expert in (4, 16):
            few = {"num_hidden_layers": 4, "interleave_moe_layer_step": 4, "num_local_experts": n_expert}
            part = sparse_llama4.text_tower(Path(folder) / str(n_expert), **sparse_llama4.SCOUT | few)
            warm(part)
            for quant in quants:
                run = ours(part, quant)
                print(f"  {n_expert:2} experts, {quant}: peak {run.peak / 1e6:.0f} MB, {run.seconds:.1f} s", flush=True)


def copied(checkpoint: Path) -> float:
    """Reading the checkpoint and writing as much as Q4_K_M takes: 10 bytes of 32."""
    output = CACHE / "copied"
    started = time.perf_counter()
    with output.open("wb") as out:
        for path in sorted(checkpoint.glob("*.safetensors")):
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    out.write(block[: len(block) * 10 // 32])
    seconds = time.perf_counter() - started
    output.unlink()
    return seconds


def compare(checkpoint: Path, quant: str, rounds: int) -> None:
    pairs = [(ours(checkpoint, quant), theirs(checkpoint, quant)) for _ in range(rounds)]
    for name, runs in (("edge-llama", [pair[0] for pair in pairs]), ("llama.cpp", [pair[1] for pair in pairs])):
        seconds = [run.seconds for run in runs]
        sync, peak = statistics.median(run.sync for run in runs), max(run.peak for run in runs)
        print(
            f"  {quant} {name:11}{statistics.median(seconds):6.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), "
            f"fsync {sync:.1f} s, peak {peak / 1e6:.0f} MB, "
            f"written {runs[0].written / 1e9:.2f} GB"
        )
    ratios = [their.seconds / our.seconds for our, their in pairs]
    print(f"  {quant} ratio      {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def ours(checkpoint: Path, quant: str, **environment: str) -> Run:
    output = CACHE / "ours.gguf"
    command = [Path(sys.executable).with_name("edge-llama"), "convert", checkpoint, output, "--quant", quant]
    command += ["--threads", str(THREADS), "--force", "--json"]
    seconds, peak, out = measured([*map(str, command)], os.environ | environment)
    sync = float(json.loads(out)["sync_seconds"])
    written = output.stat().st_size
    output.unlink()
    return Run(seconds - sync, peak, sync, written)


def theirs(checkpoint: Path, quant: str) -> Run:
    """The faster of their ways: Q8_0 in one step, others by way of bf16."""
    middle, output = CACHE / "theirs-bf16.gguf", CACHE / "theirs.gguf"
    if quant == "q8_0":
        steps = [convert_command(checkpoint, output, "q8_0", "smollm")]
    else:
        quantize = quantize_command(middle, output, RECIPES[quant].ftype, THREADS)
        steps = [convert_command(checkpoint, middle, "bf16", "smollm"), quantize]
    runs = [measured(step) for step in steps]
    written = sum(path.stat().st_size for path in (middle, output) if path.exists())
    middle.unlink(missing_ok=True)
    output.unlink()
    return Run(sum(run[0] for run in runs), max(run[1] for run in runs), 0.0, written)


def measured(command: list[str], environment: Mapping[str, str] | None = None) -> tuple[float, int, str]:
    """Seconds, peak RssAnon of the process tree, and what it printed."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    peak = [0]
    watcher = threading.Thread(target=watch, args=(child.pid, lambda size: peak.__setitem__(0, max(peak[0], size))))
    watcher.start()
    out, errors = child.communicate()
    seconds = time.perf_counter() - started
    watcher.join()
    if child.returncode:
        sys.exit(f"{command}: {errors[-2000:]}")
    return seconds, peak[0], out


def watch(pid: int, see: Callable[[int], None]) -> None:
    try:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            see(sum(anonymous(process.pid) for process in [root, *root.children(recursive=True)]))
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        return


def anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def warm(checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def synthetic(layers: int, shapes: "Shapes | None" = None) -> Path:
    """The checkpoint with so many layers, one shard each; made once."""
    shapes = shapes or LARGE
    folder = CACHE / (f"synthetic-{layers}" if shapes is LARGE else f"synthetic-{shapes.hidden}-{layers}")
    if (folder / "model.safetensors.index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = converted_path().parent / "smollm2"
    n_vocab = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    rng = np.random.default_rng(0)
    index = shard(folder / "outside.safetensors", shapes.outside(n_vocab), rng)
    for layer in range(layers):
        index |= shard(folder / f"layer-{layer:03}.safetensors", shapes.layer(layer), rng)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shapes.hidden,
        "intermediate_size": shapes.ffn,
        "num_attention_heads": shapes.heads,
        "num_key_value_heads": shapes.kv_heads,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": layers,
        "vocab_size": n_vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@dataclass(frozen=True, slots=True)
class Shapes:
    """Of a Llama with tied embeddings."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int

    def outside(self, n_vocab: int) -> dict[str, tuple[int, ...]]:
        """Tensors that belong to no layer."""
        return {"model.embed_tokens.weight": (n_vocab, self.hidden), "model.norm.weight": (self.hidden,)}

    def layer(self, number: int) -> dict[str, tuple[int, ...]]:
        """Those of one layer."""
        q, kv = self.heads * HEAD_DIM, self.kv_heads * HEAD_DIM
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
            "self_attn.q_proj": (q, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, q),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }
        return {f"model.layers.{number}.{name}.weight": shape for name, shape in shapes.items()}


LARGE = Shapes(hidden=2048, ffn=8192, heads=32, kv_heads=8)
SMALL = Shapes(hidden=512, ffn=2048, heads=8, kv_heads=2)


def shard(path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, str]:
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(weights(shape, rng, is_norm="norm" in name).data)
    return dict.fromkeys(shapes, path.name)


def weights(shape: tuple[int, ...], rng: np.random.Generator, *, is_norm: bool) -> NDArray[np.uint16]:
    values = np.ones(shape, np.float32) if is_norm else rng.standard_normal(shape, np.float32) * np.float32(0.02)
    return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16))


if __name__ == "__main__":
    main()
