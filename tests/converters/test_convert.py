"""The one loop: complete outputs or none, and errors that name what is wrong."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import variants
from ggufs import weights
from refusals import refusal
from safetensors.numpy import load_file

import converters
import edge_llama
from edge_llama import CheckpointError, OutputError
from edge_llama.files.gguf import read_header

GGUF = "model.gguf"


def test_threads_do_not_change_the_bytes(llama3: Path, tmp_path: Path) -> None:
    for threads in (1, 5):
        converters.convert(llama3, tmp_path / f"{threads}.gguf", threads=threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "5.gguf").read_bytes()


def test_sharding_does_not_change_the_bytes(tmp_path: Path) -> None:
    for shards in (1, 4):
        folder = checkpoints.llama3(tmp_path / str(shards) / "same-name", shards=shards)
        converters.convert(folder, tmp_path / f"{shards}.gguf")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "4.gguf").read_bytes()


def test_progress_counts_every_source_byte(llama3: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan = converters.convert(llama3, tmp_path / GGUF, on_progress=lambda done, total: seen.append((done, total))).plan
    assert {total for _, total in seen} == {plan.layout.source_bytes}
    assert seen == sorted(seen)
    assert seen[-1][0] == plan.layout.source_bytes
    assert (tmp_path / GGUF).stat().st_size == plan.layout.output_bytes


def test_a_checkpoint_written_from_gguf_is_what_safetensors_reads(packaged: Path, tmp_path: Path) -> None:
    converters.convert(packaged, tmp_path / "out", to="safetensors", quant="f32")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert len(tensors) == len(read_header(packaged).tensors)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_existing_output_is_replaced_only_by_force(llama3: Path, tmp_path: Path) -> None:
    output = tmp_path / GGUF
    output.write_bytes(b"mine")
    with refusal(OutputError, "--force"):
        converters.convert(llama3, output)
    assert output.read_bytes() == b"mine"
    converters.convert(llama3, output, force=True)
    assert read_header(output).architecture == "llama"


def test_an_existing_folder_is_replaced_only_by_force(packaged: Path, tmp_path: Path) -> None:
    output = tmp_path / "folder"
    output.mkdir()
    (output / "config.json").touch()
    with refusal(OutputError, "--force"):
        converters.convert(packaged, output, to="safetensors")
    (output / "thesis.txt").touch()
    with refusal(OutputError, r"holds 'thesis.txt', which --force would delete"):
        converters.convert(packaged, output, to="safetensors", force=True)
    (output / "thesis.txt").unlink()
    converters.convert(packaged, output, to="safetensors", force=True)
    assert (output / "config.json").stat().st_size > 100
    assert (output / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_to_a_folder_is_replaced_and_the_folder_left_alone(packaged: Path, tmp_path: Path) -> None:
    there, output = tmp_path / "there", tmp_path / "out"
    converters.convert(packaged, there, to="safetensors")
    before = {path.name: path.stat().st_mtime_ns for path in there.iterdir()}
    output.symlink_to(there)
    for _ in range(2):
        converters.convert(packaged, output, to="safetensors", force=True)
        assert not converters.partial_folder(output).exists()
        assert (output / "config.json").is_file()
        assert not output.is_symlink()
    assert {path.name: path.stat().st_mtime_ns for path in there.iterdir()} == before


def test_output_and_source_may_not_be_the_same(packaged: Path, tmp_path: Path) -> None:
    copy = tmp_path / GGUF
    shutil.copy(packaged, copy)
    before = copy.read_bytes()
    with refusal(OutputError, "same"):
        converters.convert(copy, copy, force=True)
    assert copy.read_bytes() == before


def test_an_output_that_holds_or_is_part_of_the_input_is_refused_even_by_force(llama3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(llama3, folder / "checkpoint")
    with refusal(OutputError, "the input lies in the output"):
        converters.convert(folder / "checkpoint", folder, to="safetensors", force=True)
    with refusal(OutputError, "is one of the input's files"):
        converters.convert(folder / "checkpoint", folder / "checkpoint" / "model.safetensors", to="gguf", force=True)
    assert (folder / "checkpoint" / "model.safetensors").read_bytes() == (llama3 / "model.safetensors").read_bytes()
    converters.convert(folder / "checkpoint", folder / "checkpoint" / "model.gguf")


def test_a_file_that_appears_meanwhile_is_not_overwritten(llama3: Path, tmp_path: Path) -> None:
    def appear(_done: int, _total: int) -> None:
        (tmp_path / GGUF).write_bytes(b"mine")

    with refusal(OutputError, "already exists"):
        converters.convert(llama3, tmp_path / GGUF, on_progress=appear)
    assert (tmp_path / GGUF).read_bytes() == b"mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file system that can be too small")
def test_a_disk_that_is_too_small_is_told_before_starting(
    llama3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with refusal(OutputError, r"1,000 bytes are free but the output needs [\d,]+"):
        converters.convert(llama3, tmp_path / GGUF)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs places where nobody may write")
@pytest.mark.parametrize("place", ["/proc", "/proc/self/cmdline", "{file}"])
def test_a_place_where_nothing_can_be_written_is_an_error(place: str, llama3: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refusal(OutputError, "cannot be written"):
        converters.convert(llama3, Path(place.format(file=tmp_path / "file")) / GGUF)


def spoiled_weight(folder: Path, value: float) -> None:
    """Put ``value`` into one weight of layer 1's up projection (f32 checkpoint)."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])["model.layers.1.mlp.up_proj.weight"]
    at = 8 + length + entry["data_offsets"][0] + 400
    data[at : at + 4] = np.float32(value).tobytes()
    path.write_bytes(data)


def edited_config(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.update(fields)
        (folder / "config.json").write_text(
            json.dumps({key: value for key, value in config.items() if value != "REMOVE"})
        )

    return edit


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN": (lambda folder: spoiled_weight(folder, float("nan")), r"blk\.1\.ffn_up\.weight.*1 weights are NaN"),
    "infinity": (lambda folder: spoiled_weight(folder, float("inf")), r"blk\.1\.ffn_up\.weight.*1 weights are NaN"),
    "too large for the format": (lambda folder: spoiled_weight(folder, 1e30), r"ffn_up.*too large"),
    "config of a wrong type": (edited_config(num_hidden_layers="3"), "num_hidden_layers is '3'"),
    "config field missing": (edited_config(hidden_size="REMOVE"), "hidden_size is missing"),
    "negative size": (edited_config(intermediate_size=-1), "intermediate_size is -1"),
    "NaN eps": (edited_config(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    "KV heads that do not divide": (edited_config(num_key_value_heads=3), "does not divide"),
    "head_dim that disagrees": (edited_config(head_dim=64), "config.json implies"),
    "more layers than there are": (edited_config(num_hidden_layers=4), r"layers\.3\..* is missing"),
    "fewer layers than there are": (edited_config(num_hidden_layers=2), r"layers\.2\..*not part"),
    "unknown rope type": (edited_config(rope_scaling={"type": "longrope", "factor": 2.0}), "type 'longrope'"),
    "another activation": (edited_config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "already quantized": (edited_config(quantization_config={"quant_method": "gptq"}), "these weights are quantized"),
    "unknown architecture": (edited_config(architectures=["GPT2LMHeadModel"]), "supported: LlamaForCausalLM"),
    "no architecture": (edited_config(architectures=None), "not supported"),
    "a vocabulary smaller than the tokenizer": (edited_config(vocab_size=100), "tokens but the embedding has 100"),
    "config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "config that is no object": (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object"),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.model", "tokenizer.json")],
        "neither",
    ),
    "a corrupt tokenizer": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"junk" * 99),
        "not a sentencepiece model",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"no \*\.safetensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_is_a_typed_error_and_leaves_nothing(name: str, llama2: Path, tmp_path: Path) -> None:
    spoil, expected = BAD[name]
    folder = tmp_path / "checkpoint"
    shutil.copytree(llama2, folder)
    spoil(folder)
    with refusal(CheckpointError, expected, *([] if "ffn_up" in expected else [folder])):
        converters.convert(folder, tmp_path / GGUF)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def edited_tensors(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda folder: variants.edit_tensors(folder, edit)


UP = "model.layers.1.mlp.up_proj.weight"
GOOD: dict[str, tuple[Callable[[Path], object], str]] = {
    "rows of zeros": (edited_tensors(lambda tensors: tensors[UP].__setitem__(slice(2, 5), 0)), "q4_k_m"),
    "a matrix of zeros": (edited_tensors(lambda tensors: tensors[UP].fill(0)), "q6_k"),
    "denormals": (edited_tensors(lambda tensors: tensors[UP].fill(1e-42)), "q8_0"),
    "outside float16, to bf16": (lambda folder: spoiled_weight(folder, 1e30), "bf16"),
    "outside float16, to f32": (lambda folder: spoiled_weight(folder, 1e30), "f32"),
    "outside float16, to blocks whose scale copes": (lambda folder: spoiled_weight(folder, 1e5), "q8_0"),
    "frequencies that every runtime computes": (
        edited_tensors(
            lambda tensors: tensors.update(
                {
                    "rope.freqs": np.ones(16, np.float32),
                    "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32),
                }
            )
        ),
        "q8_0",
    ),
    "tied, with lm_head": (edited_config(tie_word_embeddings=True), "q8_0"),
    "tied, without lm_head": (
        lambda folder: [
            edited_config(tie_word_embeddings=True)(folder),
            edited_tensors(lambda tensors: tensors.pop("lm_head.weight"))(folder),
        ],
        "q8_0",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_checkpoint_converts_and_runs(name: str, llama2: Path, tmp_path: Path) -> None:
    spoil, quant = GOOD[name]
    folder = tmp_path / "checkpoint"
    shutil.copytree(llama2, folder)
    spoil(folder)
    converters.convert(folder, tmp_path / GGUF, quant=quant)
    assert all(np.isfinite(rows).all() for rows in weights(tmp_path / GGUF).values())
    with edge_llama.open(tmp_path / GGUF, n_ctx=64, threads=1) as model:
        assert len(model.generate("Hello", temperature=0, max_tokens=2).result().tokens) > 0


@pytest.mark.parametrize(("value", "quant"), [(70000.0, "f16"), (1e30, "q8_0")])
def test_a_weight_outside_float16_is_refused_where_the_format_cannot_cope(
    value: float, quant: str, llama2: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(llama2, folder)
    spoiled_weight(folder, value)
    with refusal(CheckpointError, rf"blk\.1\.ffn_up\.weight.* too large for {quant}"):
        converters.convert(folder, tmp_path / GGUF, quant=quant)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m", "f16", "f32"])
def test_nonfinite_weights_can_be_allowed(value: float, quant: str, llama2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(llama2, folder)
    spoiled_weight(folder, value)
    converters.convert(folder, tmp_path / GGUF, quant=quant, allow_nonfinite=True)
    assert read_header(tmp_path / GGUF).architecture == "llama"


def test_a_head_matrix_that_repeats_a_tied_embedding_is_kept_as_llama_cpp_keeps_it(tmp_path: Path) -> None:
    folder = checkpoints.llama3(tmp_path / "checkpoint", tied=False)
    edited_config(tie_word_embeddings=True)(folder)
    converters.convert(folder, tmp_path / GGUF)
    assert "output.weight" in {tensor.name for tensor in read_header(tmp_path / GGUF).tensors}
