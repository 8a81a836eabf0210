"""Are our files llama.cpp's files? Its own converter and quantizer against our one pass, on every family we convert.

    .venv/bin/python benchmarks/converter_parity.py            # prints a table; exit 1 if anything differs
    .venv/bin/python benchmarks/converter_parity.py "Llama 4"  # of the families with this in their name

llama.cpp's converter comes inside llama-cpp-python's source distribution, which pip downloads once into ``.cache``.
It runs unchanged but for one thing: it knows a byte-level tokenizer only by the hash of one encoded text, so it is
told the name of the tokenizers that were trained here. Needs the ``dev`` extra (torch, transformers).

Equal means: the same tensor table (names, order, shapes, formats, offsets from the data's start), the same bytes, and
the same metadata key by key; keys that name the model (``general.name``, ``general.size_label``, ...) and
``edge_llama.*`` may differ. A vision tower's file (mmproj) names the second norm of a layer as llama.cpp's graph
reads it; its converter writes another name. Where its converter is wrong a row says ``differs``, and why. Recorded
output: ``benchmarks/results/converter_parity.txt``.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from peers import ROOT, convert_command, converted_by_llama_cpp

sys.path.insert(0, str(ROOT / "tests"))

import checkpoints
import families
import llama4
import variants
from checkpoints import Shape
from parity_differences import DIFFERENCES
from quantizer import differences, quantized_by_llama_cpp

import converters
from converters.targets import mmproj
from edge_llama.files.artifact import converted_path
from edge_llama.files.gguf import Header, read_header
from quant.recipe import RECIPES

K_QUANTS = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}  # rows of whole super-blocks
WIDE = Shape(hidden=256, ffn=768, layers=8, heads=4, kv_heads=1)
FAMILIES: dict[str, tuple[str, str, Callable[[Path], Path]]] = {
    # name: (llama.cpp's name of the tokenizer if it must be told, float format of the intermediate, maker)
    "Llama 2, f32, older config": ("", "f32", lambda at: checkpoints.llama2(at, shape=Shape(kv_heads=4))),
    "Llama 2, bf16, 3 shards": (
        "",
        "bf16",
        lambda at: checkpoints.llama2(at, shape=WIDE, dtype="BF16", shards=3, old_spelling=False),
    ),
    "Llama 3.2, bf16, tied, scaled": ("llama-bpe", "bf16", lambda at: checkpoints.llama3(at, shape=WIDE)),
    "Llama 3, f16, untied, older config": (
        "llama-bpe",
        "f32",
        lambda at: checkpoints.llama3(
            at, shape=WIDE, dtype="F16", tied=False, rope_scaling=False, old_spelling=True, template_file=True
        ),
    ),
    "Llama 3.1, f32, padded vocabulary": (
        "llama-bpe",
        "f32",
        lambda at: checkpoints.llama3(at, dtype="F32", tied=False, padding=24),
    ),
    "SmolLM2, f32": ("smollm", "f32", checkpoints.smollm),
    "Llama 4 Scout, f32": ("llama4", "f32", llama4.scout),
    "Llama 4 Scout, bf16, 8 experts": (
        "llama4",
        "bf16",
        lambda at: llama4.scout(
            at, dtype="BF16", shards=3, num_hidden_layers=9, num_local_experts=8, **llama4.K_QUANTS
        ),
    ),
    "Llama 4 Maverick, f16": ("llama4", "f32", lambda at: llama4.maverick(at, dtype="F16")),
    "Llama 4, text alone, f32, tied": ("llama4", "f32", lambda at: llama4.text_only(at, tie_word_embeddings=True)),
    "Llama 2, f32, YaRN": ("", "f32", variants.yarn),
    "Mistral 7B, f32": ("", "f32", families.mistral),
    "Mistral 7B, bf16": ("", "bf16", lambda at: families.mistral(at, dtype="bfloat16", **K_QUANTS)),
    "Mixtral, f32": ("", "f32", families.mixtral),
    "Mixtral, bf16, 8 experts": (
        "",
        "bf16",
        lambda at: families.mixtral(at, dtype="bfloat16", num_local_experts=8, **K_QUANTS),
    ),
    "Qwen2.5, f32": ("qwen2", "f32", families.qwen2),
    "Qwen2.5, bf16, untied": (
        "qwen2",
        "bf16",
        lambda at: families.qwen2(at, dtype="bfloat16", tie_word_embeddings=False, **K_QUANTS),
    ),
    "Qwen3, bf16": ("qwen2", "bf16", lambda at: families.qwen3(at, dtype="bfloat16", **K_QUANTS)),
    "SmolLM3, bf16": ("llama-bpe", "bf16", lambda at: families.smollm3(at, dtype="bfloat16", **K_QUANTS)),
    "Gemma 3, bf16": ("", "bf16", lambda at: families.gemma3(at, dtype="bfloat16", **K_QUANTS)),
    "Gemma 3 beside vision, f32": ("", "f32", families.gemma3_with_vision),
    "Gemma 3, f16": ("", "f32", lambda at: families.gemma3(at, dtype="float16")),
    "SmolLM2-135M (built in), bf16": ("smollm", "bf16", lambda _at: converted_path().parent / "smollm2"),
    **{name: (pre, "f32", make) for name, (pre, make, _) in DIFFERENCES.items()},
}

KNOWN: dict[str, Mapping[str, str]] = {
    **{name: known for name, (_, _, known) in DIFFERENCES.items()},
    "Gemma 3, f16": {"bytes": "it adds one to the norms in float16, transformers in float32"},
}
"""What differs because llama.cpp's converter is wrong, by family, and why. A difference that is gone counts as one."""

TOWERS: dict[str, Callable[[Path], Path]] = {
    "Llama 4 vision, f32": llama4.scout,
    "Llama 4 vision, f16": lambda at: llama4.scout(at, dtype="F16"),
    "Llama 4 vision, bf16, 5 layers": lambda at: llama4.scout(
        at, dtype="BF16", vision={"image_size": 112, "num_hidden_layers": 5}
    ),
    "Llama 4 vision, trained on digits": lambda _at: ROOT / "tests" / "data" / "llama4_digits",
}


def main() -> None:
    print(f"llama.cpp of llama-cpp-python {version('llama-cpp-python')}; equal tables, bytes and metadata:")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        wanted = " ".join(sys.argv[1:])
        asked = {name: entry for name, entry in FAMILIES.items() if wanted in name}
        for number, (family, (pre, floats, make)) in enumerate(asked.items()):
            work = Path(folder) / str(number)
            work.mkdir()
            checkpoint = make(work / "Tiny-Llama-Instruct")
            theirs = converted_by_llama_cpp(checkpoint, work / "floats.gguf", floats, pre)
            for recipe in (each for each in RECIPES.values() if not each.needs_importance):
                differences = list(compare(checkpoint, theirs, recipe.name, recipe.ftype, work))
                failures += report(family, recipe.name, differences)
        for number, (family, make) in enumerate((name, make) for name, make in TOWERS.items() if wanted in name):
            work = Path(folder) / f"tower-{number}"
            work.mkdir()
            checkpoint = make(work / "Tiny-Llama-Instruct")
            for quant in mmproj.MMPROJ.quants:
                failures += report(family, quant, list(compare_towers(checkpoint, quant, work)))
    sys.exit(bool(failures))


def report(family: str, quant: str, differences: list[str]) -> bool:
    """Prints a line of the table; whether anything differs that is not known to, or no longer does."""
    known = KNOWN.get(family, {})
    found = {line.partition(" is ")[0] for line in differences}
    if known and found == set(known):
        differences, verdict = [], "; ".join(f"differs: {what}, {why}" for what, why in known.items())
    else:
        differences = differences or [f"{what} no longer" for what in known]
        verdict = "equal" if not differences else "DIFFERS: " + "; ".join(differences)
    print(f"  {family:36}{quant:8}{verdict}", flush=True)
    return bool(differences)


def compare(checkpoint: Path, floats: Path, quant: str, ftype: int, work: Path) -> Iterator[str]:
    """What differs between their two steps and our one, in words."""
    ours, theirs = work / "ours.gguf", work / "theirs.gguf"
    converters.convert(checkpoint, ours, quant=quant, tower="text", force=True)
    quantized_by_llama_cpp(floats, theirs, ftype)
    yield from differences(read_header(ours), read_header(theirs))


def compare_towers(checkpoint: Path, quant: str, work: Path) -> Iterator[str]:
    """What differs between its mmproj and ours, in words."""
    ours, theirs = work / f"ours-{quant}.gguf", work / f"mmproj-{quant}.gguf"
    converters.convert(checkpoint, ours, tower="vision", vision_quant=quant)
    subprocess.run([*convert_command(checkpoint, theirs, quant), "--mmproj"], capture_output=True, check=True)
    yield from differences(read_header(ours), with_second_norm(read_header(theirs)))


def with_second_norm(header: Header) -> Header:
    """Their table under the names that their graph reads."""
    named = (replace(info, name=info.name.replace("attn_post_norm", "ln2")) for info in header.tensors)
    return replace(header, tensors=tuple(named))


if __name__ == "__main__":
    main()
