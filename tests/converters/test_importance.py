"""Conversions by an importance matrix: whole files equal llama.cpp's with the same one, and what is refused."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import checkpoints
import families
import llama4
import numpy as np
import pytest
from quantizer import differences, drawn_importance, quantized_by_llama_cpp
from refusals import refusal
from safetensors.numpy import load_file, save_file
from suite import shared

import converters
import edge_llama
from edge_llama.cli import evaluate_overlap, fit
from edge_llama.errors import ArtifactError, CheckpointError, OptionError
from edge_llama.fidelity.texts import Text, default_texts, fingerprint, hashes
from edge_llama.files.gguf import read_header
from quant import kernels
from quant.importance import HASHES, TEXTS, Importance, Sums, read_importance, write_importance
from quant.recipe import RECIPES

EXPERTS = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
WIDE = checkpoints.Shape(hidden=256, ffn=256, layers=1, heads=4, kv_heads=1)
SCOUT = llama4.K_QUANTS | {"num_local_experts": 16, "intermediate_size": 32, "intermediate_size_mlp": 64}
MODELS: dict[str, Callable[[Path], object]] = {
    "dense": lambda folder: checkpoints.llama2(folder, shape=WIDE, dtype="BF16"),
    "tied": lambda folder: checkpoints.llama3(folder, shape=WIDE, tied=True),
    "other rows": lambda folder: checkpoints.llama3(
        folder, shape=checkpoints.Shape(hidden=288, ffn=256, layers=2, heads=4, head_dim=32), tied=False
    ),
    "8 experts": lambda folder: families.mixtral(folder, **EXPERTS, num_local_experts=8),
    "llama 4, 16 experts": lambda folder: llama4.text_only(folder, **SCOUT),
}
N_MODELS = min(int(os.environ.get("EDGE_LLAMA_CASES", "1")), len(MODELS))
"""To each recipe: ``EDGE_LLAMA_CASES=5`` tries all."""
QUANTIZED = [name for name, recipe in RECIPES.items() if recipe.default.is_quantized]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each model a checkpoint, a file that loses nothing of it, and importance matrices in both forms."""

    def make(at: Path) -> None:
        at.mkdir()
        rng = np.random.default_rng(24)
        for name, maker in MODELS.items():
            maker(at / name)
            converters.convert(at / name, at / f"{name}.gguf", quant="f32")
            shapes = {info.name: info.shape for info in read_header(at / f"{name}.gguf").tensors}
            importance = drawn_importance(shapes, rng)
            write_importance(at / f"{name}-imatrix.gguf", importance)
            write_importance(at / f"{name}.dat", importance)

    return shared(tmp_path_factory, "importance", make)


def importance_of(folder: Path, model: str, form: str = "-imatrix.gguf") -> Importance:
    return read_importance(folder / f"{model}{form}")


@pytest.mark.parametrize("quant", QUANTIZED)
def test_files_equal_llama_cpps_by_the_same_matrix(
    quant: str, rng: np.random.Generator, folder: Path, tmp_path: Path
) -> None:
    """Formats, bytes and metadata, its keys ``quantize.imatrix.*`` too; of a model drawn anew each run."""
    for model in map(str, rng.choice(list(MODELS), N_MODELS, replace=False)):
        print(model)
        importance, ours = importance_of(folder, model), tmp_path / f"{model}.gguf"
        converters.convert(folder / model, ours, quant=quant, calibration=importance.path)
        theirs = quantized_by_llama_cpp(
            folder / f"{model}.gguf", tmp_path / "theirs.gguf", RECIPES[quant].ftype, importance=importance
        )
        assert not list(differences(read_header(ours), read_header(theirs)))


@pytest.mark.parametrize("model", ["dense", "8 experts"])
def test_an_older_dat_file_counts_as_much(model: str, folder: Path, tmp_path: Path) -> None:
    importance = importance_of(folder, model, ".dat")
    converters.convert(folder / model, tmp_path / "ours.gguf", quant="iq2_xs", calibration=importance.path)
    ftype = RECIPES["iq2_xs"].ftype
    theirs = quantized_by_llama_cpp(folder / f"{model}.gguf", tmp_path / "theirs.gguf", ftype, importance=importance)
    assert not list(differences(read_header(tmp_path / "ours.gguf"), read_header(theirs)))


def test_the_matrix_of_another_name_and_of_old_is_replaced(folder: Path, tmp_path: Path) -> None:
    """A GGUF source that says of an older matrix; a path longer than llama-quantize's room for it."""
    once, long = tmp_path / "once.gguf", tmp_path / ("ä" * 100) / "imatrix.gguf"
    long.parent.mkdir()
    long.write_bytes((folder / "dense.dat").read_bytes())
    converters.convert(folder / "dense", once, quant="q8_0", calibration=folder / "dense-imatrix.gguf")
    converters.convert(once, tmp_path / "twice.gguf", quant="q4_k_m", calibration=long)
    fields = read_header(tmp_path / "twice.gguf").fields
    said = {key.rpartition(".")[2]: value.data for key, value in fields.items() if key.startswith("quantize.imatrix.")}
    assert said == {
        "file": os.fsencode(long)[:127].decode("utf-8", "ignore"),
        "dataset": "calibration.txt",
        "entries_count": 8,
        "chunks_count": 8,
    }
    plain = tmp_path / "plain.gguf"
    converters.convert(once, plain, quant="q4_0")  # as llama-quantize keeps them
    assert read_header(plain).fields["quantize.imatrix.file"].data == str(folder / "dense-imatrix.gguf")[:127]


def test_the_file_tells_which_texts_were_calibrated_on_and_evaluate_warns_of_them(folder: Path, tmp_path: Path) -> None:
    calibration, others = default_texts("calibration"), default_texts("evaluation")
    notes = {TEXTS: fingerprint(calibration), HASHES: hashes(calibration)}
    write_importance(tmp_path / "noted.gguf", replace(importance_of(folder, "dense"), notes=notes))
    converters.convert(folder / "dense", tmp_path / "model.gguf", quant="q2_k", calibration=tmp_path / "noted.gguf")
    fields = {key: value.data for key, value in read_header(tmp_path / "model.gguf").fields.items()}
    assert {key: fields[key] for key in notes} == notes
    assert not list(evaluate_overlap.warnings("model.gguf", fields, others))
    mixed = Text("mine.txt", "own", others[0].content + calibration[0].content)
    (told,) = evaluate_overlap.warnings("model.gguf", fields, [*others, mixed])
    assert re.fullmatch(r"warning: model.gguf was calibrated on mine.txt \(\d\d % of it\): it does better .*", told)


def test_a_bundle_s_text_tower_is_weighed_too(folder: Path, tmp_path: Path) -> None:
    source = llama4.scout(tmp_path / "scout", **SCOUT)
    evidence = folder / "llama 4, 16 experts-imatrix.gguf"
    converters.convert(source, tmp_path / "bundle", quant="q2_k_s", calibration=evidence)
    converters.convert(source, tmp_path / "text.gguf", quant="q2_k_s", tower="text", calibration=evidence)
    ours = [read_header(tmp_path / name) for name in ("bundle/text.gguf", "text.gguf")]
    assert not list(differences(*ours))


def test_the_engine_runs_what_needs_importance(folder: Path, tmp_path: Path) -> None:
    for quant in ("iq1_s", "iq2_xxs", "iq3_xxs"):
        output = tmp_path / f"{quant}.gguf"
        converters.convert(folder / "dense", output, quant=quant, calibration=folder / "dense-imatrix.gguf")
        with edge_llama.open(output, n_ctx=128) as opened:
            assert opened.generate("a", max_tokens=3, temperature=0).result().tokens


def test_compiled_kernels_weigh_as_ggmls_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for which in ("ggml", "compiled"):
        monkeypatch.setenv("EDGE_LLAMA_KERNELS", which)
        monkeypatch.setattr(kernels, "_loaded", {})
        output, matrix = tmp_path / f"{which}.gguf", folder / "8 experts-imatrix.gguf"
        converters.convert(folder / "8 experts", output, quant="q4_k_s", calibration=matrix)
        assert (("q4_k", True) in kernels._loaded) == (which == "compiled")
    assert (tmp_path / "ggml.gguf").read_bytes() == (tmp_path / "compiled.gguf").read_bytes()


def test_interrupted_work_goes_on_only_by_the_same_matrix(folder: Path, tmp_path: Path) -> None:
    evidence, output = tmp_path / "imatrix.gguf", tmp_path / "out.gguf"
    importance = importance_of(folder, "dense")
    write_importance(evidence, importance)

    def stop_late(done: int, total: int) -> None:
        if 2 * done > total:
            raise KeyboardInterrupt

    def stopped() -> None:
        with pytest.raises(KeyboardInterrupt):
            converters.convert(
                folder / "dense", output, quant="q4_k_m", calibration=evidence, on_progress=stop_late, threads=1
            )

    stopped()
    again = converters.convert(folder / "dense", output, quant="q4_k_m", calibration=evidence)
    assert again.resumed_bytes > 0
    output.unlink()
    stopped()
    sums, counts = importance.entries["blk.0.ffn_down.weight"]
    write_importance(
        evidence,
        replace(importance, entries={**importance.entries, "blk.0.ffn_down.weight": Sums(sums[:, ::-1], counts)}),
    )
    other = converters.convert(folder / "dense", output, quant="q4_k_m", calibration=evidence)
    assert other.resumed_bytes == 0


def without_layer(importance: Importance) -> Importance:
    return replace(importance, entries={k: v for k, v in importance.entries.items() if k != "blk.0.attn_q.weight"})


def changed(importance: Importance, values: np.ndarray) -> Importance:
    entry = Sums(values.astype(np.float32), importance.entries["blk.0.attn_q.weight"].counts)
    return replace(importance, entries={**importance.entries, "blk.0.attn_q.weight": entry})


REFUSED: dict[str, tuple[str, Callable[[Importance], Importance], str]] = {
    "no matrix": (
        "iq2_xxs",
        lambda each: each,
        "blk.0.attn_k.weight would be iq2_xxs, which takes an importance matrix",
    ),
    "no values": ("iq2_xxs", without_layer, "has nothing of this tensor"),
    "other shapes": ("q4_k_m", lambda each: changed(each, np.ones((1, 128))), "blk.0.attn_q.weight has 128 values"),
    "too large": ("q4_k_m", lambda each: changed(each, np.full((1, 256), 3e38)), "is too large"),
    "floats": ("f16", lambda each: each, "by which --quant f16 quantizes nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_matrix_that_does_not_do_is_refused_and_nothing_is_written(case: str, folder: Path, tmp_path: Path) -> None:
    quant, change, expected = REFUSED[case]
    evidence, out = tmp_path / "imatrix.gguf", tmp_path / "out"
    out.mkdir()
    write_importance(evidence, change(importance_of(folder, "dense")))
    given = {} if case == "no matrix" else {"calibration": evidence}
    with refusal(OptionError, expected):
        converters.convert(folder / "dense", out / "a.gguf", quant=quant, **given)
    assert not list(out.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_values_by_which_nothing_can_be_weighed_are_refused(value: float, folder: Path, tmp_path: Path) -> None:
    raw = (folder / "dense-imatrix.gguf").read_bytes()
    at = next(
        info for info in read_header(folder / "dense-imatrix.gguf").tensors if "attn_q.weight.in_sum2" in info.name
    )
    (tmp_path / "bad.gguf").write_bytes(
        raw[: at.offset] + np.full(256, value, np.float32).tobytes() + raw[at.offset + 1024 :]
    )
    with pytest.raises(ArtifactError, match=r"blk\.0\.attn_q\.weight"):
        converters.convert(folder / "dense", tmp_path / "a.gguf", calibration=tmp_path / "bad.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.gguf"]


def test_the_matrix_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for model in ("8 experts", "other rows"):
        with pytest.raises(OptionError, match="of another model"):
            converters.convert(folder / "dense", tmp_path / "a.gguf", calibration=folder / f"{model}-imatrix.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"to": "onnx"}, "is an importance matrix, which a text tower in a GGUF file alone is quantized by"),
        ({"to": "safetensors"}, "--calibration: is for GGUF and ONNX alone"),
        ({"tensor_type_file": "types.txt", "to": "onnx"}, "--tensor-type-file: is for GGUF alone"),
        ({"tensor_type_file": "types.txt", "to": "safetensors"}, "--tensor-type-file: is for GGUF alone"),
    ],
)
def test_other_targets_say_what_they_don_t_heed(
    options: dict[str, str], expected: str, folder: Path, tmp_path: Path
) -> None:
    given = options if "tensor_type_file" in options else {**options, "calibration": folder / "dense.dat"}
    with refusal(OptionError, expected):
        converters.convert(folder / "dense", tmp_path / "out", **given)


def test_two_matrices_are_one_too_many(folder: Path, tmp_path: Path) -> None:
    both = [folder / "dense.dat", folder / "dense-imatrix.gguf"]
    with pytest.raises(OptionError, match="2 importance matrices are given"):
        converters.convert(folder / "dense", tmp_path / "a.gguf", calibration=both)


def test_weights_that_ggml_would_end_the_process_on_are_an_error(folder: Path, tmp_path: Path) -> None:
    """Unchecked too: its search finds no point of the codebook where sums overflow, and aborts."""
    source = checkpoints.llama2(tmp_path / "bad", shape=WIDE, dtype="F32")
    tensors = load_file(source / "model.safetensors")
    for value in (1e30, np.nan):
        tensors["model.layers.0.mlp.down_proj.weight"][7, 7] = value
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_down\.weight"):
            converters.convert(
                *(source, tmp_path / "a.gguf"),
                quant="iq2_xs",
                calibration=folder / "dense-imatrix.gguf",
                allow_nonfinite=True,
            )
    assert not list(tmp_path.glob("*.gguf"))


def test_the_command_line_knows_it_as_imatrix_too(folder: Path, tmp_path: Path) -> None:
    program, matrix = Path(sys.executable).with_name("edge-llama"), folder / "dense-imatrix.gguf"
    for flag in ("--imatrix", "--calibration"):
        command = [program, "convert", folder / "dense", tmp_path / f"{flag}.gguf", "--quant", "fit", flag, matrix]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "importance: 8 of 9 matrices are quantized by it; nothing is known of token_embd.weight" in done.stderr
    assert (tmp_path / "--imatrix.gguf").read_bytes() == (tmp_path / "--calibration.gguf").read_bytes()
    shown = subprocess.run([program, "inspect", folder / "dense"], capture_output=True, text=True, check=True).stdout
    needing = {line.split()[0] for line in shown.splitlines() if "by an importance matrix" in line}
    assert needing == {name for name, recipe in RECIPES.items() if recipe.needs_importance}


def test_a_machine_of_little_memory_gets_a_smaller_recipe_by_importance(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "best", lambda found: list(found)[-1])
    assert fit.fitting_quant(folder / "dense") == "q2_k"
    assert fit.fitting_quant(folder / "dense", [folder / "dense.dat"]) == "iq1_s"


def test_the_report_says_what_was_weighed(folder: Path, tmp_path: Path) -> None:
    work = converters.plan(folder / "dense", tmp_path / "a.gguf", calibration=folder / "dense-imatrix.gguf")
    told = "8 of 9 matrices are quantized by it; nothing is known of token_embd.weight"
    assert work.checkpoint.notes["importance"] == told
    assert json.loads((folder / "dense" / "config.json").read_text())["num_hidden_layers"] == 1
