"""Llama 4's pictures: answers beside transformers' and llama.cpp's own tool, and what pictures cost.

    .venv/bin/python benchmarks/images.py answers [--pictures 1000]  # ours in six precisions, beside transformers
    .venv/bin/python benchmarks/images.py peer    [--pictures 40]    # llama-mtmd-cli on the same two-tile pictures
    .venv/bin/python benchmarks/images.py speed                      # tiles a second, a question and the next one
    .venv/bin/python benchmarks/images.py chunk                      # a prompt beyond one chunk of attention

The model is the small one in ``tests/data`` that was trained to read digits (``--model`` takes another folder of
``tests/llama4_training.py``); pictures are held out, each drawn in a size of its own.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import ROOT, convert_command, program, program_environment
from PIL import Image as Pillow

sys.path.insert(0, str(ROOT / "tests"))

import llama4
from engines import open_vision
from llama4_answers import EXACT, KINDS, Question, opened, ours, questions, right, theirs
from llama4_reference import Reference
from llama4_training import dialogues
from npu import digits, in_integers

import converters
import edge_llama
from edge_llama import Image
from edge_llama.backends.towers import read_bundle

THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["answers", "peer", "speed", "chunk"])
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--model", type=Path, default=ROOT / "tests" / "data" / "llama4_digits")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = {"answers": answers, "peer": peer, "speed": speed, "chunk": chunk}[options.what]
        work(options, Path(folder))


def answers(options: argparse.Namespace, folder: Path) -> None:
    asked = questions(options.pictures or 1000)
    reference = Reference(options.model)
    said = {
        "transformers, f32": [theirs(reference, question, same_pixels=False) for question in asked],
        "transformers, f32, pixels not rounded to bf16": [theirs(reference, question) for question in asked],
    }
    for name, quant, vision in (
        ("ours, f32", "f32", "f32"),
        ("ours, q8_0 and f16", "q8_0", "f16"),
        ("ours, q4_k_m and f16", "q4_k_m", "f16"),
    ):
        with opened(options.model, folder, quant, vision) as model:
            said[name] = [ours(model, question) for question in asked]
            if name == "ours, f32":
                said["ours, f32, black pictures"] = [ours(model, question, blank=True) for question in asked]
    for name, form in (("ours, f32 and int8", "int8"), ("ours, f32 and int4", "int4")):
        with opened(options.model, folder, "f32", form) as model:
            said[name] = [ours(model, question) for question in asked]
    spec = read_bundle(folder / "f32-f32").vision.spec
    tower = in_integers(options.model, folder / "integers", digits(spec, held_out=False, seed=1, count=40)) / "a16w8"
    with edge_llama.open(folder / "f32-f32", vision=tower, n_ctx=2048, **EXACT) as model:
        said["ours, f32 and a16w8"] = [ours(model, question) for question in asked]
    first = said["transformers, f32, pixels not rounded to bf16"]
    print(f"{len(asked):,} held-out pictures of {', '.join(KINDS)}: right answers, and those equal to transformers'")
    for name, texts in said.items():
        equal = sum(a == b for a, b in zip(texts, first, strict=True))
        kinds = ", ".join(f"{right(texts[at::4], asked[at::4]).mean():.1%}" for at in range(len(KINDS)))
        print(f"  {name:46} {right(texts, asked).mean():6.1%} right ({kinds}), {equal:,} equal")


def peer(options: argparse.Namespace, folder: Path) -> None:
    """Pictures of two tiles: a digit in each, side by side or one above the other."""
    count = options.pictures or 40
    tile, rng = llama4.VISION["image_size"], np.random.default_rng(3)
    kinds = ("across", "stacked")
    drawn = [dialogues(kinds[at % 2], 1, rng, held_out=True, side=(tile, tile))[0].turns[0] for at in range(count)]
    asked = [Question(kinds[at % 2], turn) for at, turn in enumerate(drawn)]
    reference = Reference(options.model)
    said = {"transformers": [theirs(reference, question, same_pixels=False) for question in asked]}
    with opened(options.model, folder, "f32", "f32") as model:
        said["edge-llama, ONNX vision tower"] = [ours(model, question) for question in asked]
    text = folder / "f32-f32" / "text.gguf"
    mine = folder / "mmproj-ours.gguf"
    converters.convert(options.model, mine, tower="vision", vision_quant="f32")
    with edge_llama.open(text, vision=mine, n_ctx=2048, **EXACT) as model:
        said["edge-llama, llama.cpp's encoder"] = [ours(model, question) for question in asked]
    own = folder / "mmproj-theirs.gguf"
    subprocess.run([*convert_command(options.model, own, "f32"), "--mmproj"], check=True, capture_output=True)
    for name, tower in (("its converter's mmproj", own), ("our mmproj, the norm put right", mine)):
        said[f"llama-mtmd-cli, {name}"] = [_mtmd(text, tower, question, folder) for question in asked]
    print(f"{count} held-out pictures of two tiles, greedy, f32: right answers")
    for name, texts in said.items():
        print(f"  {name:48} {right(texts, asked).sum():3}")


def _mtmd(text: Path, tower: Path, question: Question, folder: Path) -> str:
    picture = folder / "picture.png"
    Pillow.fromarray(question.turn.pictures[0]).save(picture)
    command: list[Any] = [program("llama-mtmd-cli"), "-m", text, "--mmproj", tower, "--image", picture]
    command += ["-p", question.turn.question, "--temp", 0, "-n", 32, "-t", THREADS, "--jinja", "-c", 2048]
    command += ["-fa", "off", "-ctk", "f32", "-ctv", "f32"]
    done = subprocess.run(
        list(map(str, command)), env=program_environment(), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def speed(_options: argparse.Namespace, folder: Path) -> None:
    """A random tower of some width: what a tile costs, in four formats; and a picture's first and second question."""
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12}
    wide |= {"projector_input_dim": 1024, "projector_output_dim": 1024, "vision_output_dim": 1024, "image_size": 336}
    source = llama4.scout(folder / "wide", vision=wide, **llama4.K_QUANTS)
    pixels = np.random.default_rng(0).normal(size=(4, 3, 336, 336)).astype(np.float32)
    rates: dict[str, list[float]] = {"f32": [], "f16": [], "int8": [], "int4": []}
    towers = {}
    for kind in rates:
        converters.convert(source, folder / kind, vision_quant=kind)
        artifact = read_bundle(folder / kind).vision
        assert artifact
        towers[kind] = open_vision(artifact, threads=THREADS)
    for _ in range(7):
        for kind, tower in towers.items():
            began = time.perf_counter()
            tower.encode(pixels)
            rates[kind].append(len(pixels) / (time.perf_counter() - began))
    print("a random tower: 12 layers of 512, tiles of 336 pixels, ONNX Runtime, 2 threads, 7 rounds in turn")
    for kind, values in rates.items():
        print(f"  {kind}: {statistics.median(values):.2f} tiles/s ({min(values):.2f} to {max(values):.2f})")
    with edge_llama.open(folder / "f16", n_ctx=8192) as model:
        chat = model.chat(temperature=0, max_tokens=1)
        picture = Image.open(np.random.default_rng(0).integers(0, 256, (800, 1200, 3), dtype=np.uint8))
        for question, shown in (("What is this?", [picture]), ("And what else?", [])):
            timings = chat.send(question, images=shown).result().timings
            print(
                f"  {question:16} {timings.prompt_tokens:,} tokens, {timings.cached_tokens:,} cached, "
                f"{timings.tiles} tiles: {timings.image_seconds:.2f} s of images, {timings.prompt_seconds:.2f} s in all"
            )


def chunk(_options: argparse.Namespace, folder: Path) -> None:
    """Attention in chunks of 8,192 tokens: the last logits of a longer prompt."""
    from engines import last_logits  # noqa: PLC0415

    source = llama4.text_only(folder / "text")
    converters.convert(source, folder / "text.gguf", quant="f32")
    reference = Reference(source)
    for length in (8192, 8193, 8400):
        ids = np.random.default_rng(length).integers(300, 2000, length).tolist()
        expected = reference.logits(ids)[-1]
        found = last_logits(folder / "text.gguf", ids, n_ctx=8704)
        difference = np.abs(found - expected).max()
        print(f"  {length:,} tokens: last logits within {difference:.1e} of transformers', of {expected.max():.1f}")


if __name__ == "__main__":
    main()
