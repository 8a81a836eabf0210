"""``edge-llama inspect``."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from edge_llama.files.gguf import read_header

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_it_shows_towers_metadata_and_tensors(cli: Cli, converted: Path) -> None:
    done = cli("inspect", converted)
    assert done.returncode == 0
    for text in (
        "text tower (llama)",
        "llama.block_count",
        "uint32",
        "token_embd.weight",
        "49,152 x 576",
        "134,515,008 weights",
    ):
        assert text in done.stdout


def test_json_holds_the_whole_header(called: Cli, converted: Path) -> None:
    data = json.loads(called("inspect", converted, "--json").stdout)
    header = read_header(converted)
    assert set(data["metadata"]) == set(header.fields)
    assert [tensor["name"] for tensor in data["tensors"]] == [tensor.name for tensor in header.tensors]
    assert data["weight_bytes"] == sum(tensor.nbytes for tensor in header.tensors)
    assert len(data["metadata"]["tokenizer.ggml.tokens"]) == 49152


def test_a_bundle_shows_both_towers_and_its_files(called: Cli, bundle: Path) -> None:
    shown = called("inspect", bundle)
    assert shown.returncode == 0
    for text in (
        "vision/model.onnx.data: ",
        "text tower (llama4)",
        "llama4.block_count",
        "vision tower (onnxruntime, f16), at most 16 tiles of 56 x 56 pixels, 4 tokens of 64 numbers each",
    ):
        assert text in shown.stdout
    data = json.loads(called("inspect", bundle, "--json").stdout)
    assert data["towers"]["text"]["architecture"] == "llama4"
    vision = data["towers"]["vision"]
    assert (vision["engine"], vision["format"], vision["images"]["tile"]) == ("onnxruntime", "f16", 56)
    counts = {tower: sum(tensor["tower"] == tower for tensor in data["tensors"]) for tower in ("text", "vision")}
    assert counts["text"] == len(read_header(bundle / "text.gguf").tensors)
    assert counts["vision"] > 20
    assert data["metadata"]["general.architecture"] == "llama4"
    assert data["generation"]["temperature"] == 0.6


def test_an_importance_matrix_is_shown_as_one(called: Cli) -> None:
    path = Path(__file__).parents[1] / "data" / "imatrix" / "mixture.gguf"
    shown = called("inspect", path).stdout
    assert "importance matrix, 5 chunks of 128 tokens" in shown
    assert "blk.0.ffn_down_exps.weight.counts" in shown
    data = json.loads(called("inspect", path, "--json").stdout)
    assert data["importance"] == {"chunks": 5, "tokens_per_chunk": 128}
    assert data["metadata"]["imatrix.datasets"] == ["text.txt"]


def test_a_vision_tower_alone_is_shown(called: Cli, bundle: Path, llama4_scout: Path, tmp_path: Path) -> None:
    data = json.loads(called("inspect", bundle / "vision/model.onnx", "--json").stdout)
    assert list(data["towers"]) == ["vision"]
    assert called("convert", llama4_scout, tmp_path / "mmproj.gguf", "--tower", "vision").returncode == 0
    assert "v.blk.2.ln2.weight" in called("inspect", tmp_path / "mmproj.gguf").stdout
    data = json.loads(called("inspect", tmp_path / "mmproj.gguf", "--json").stdout)
    assert data["towers"]["vision"]["engine"] == "llama.cpp"
    assert data["towers"]["vision"]["metadata"]["clip.projector_type"] == "llama4"


def test_a_checkpoint_says_what_it_is_and_what_each_target_would_take(called: Cli, llama3: Path) -> None:
    data = json.loads(called("inspect", llama3, "--json").stdout)
    assert (data["kind"], data["family"], data["problem"]) == ("checkpoint", "LlamaForCausalLM", None)
    shown = called("inspect", llama3).stdout
    for text in ("checkpoint Llama-3.2-tiny-Instruct (LlamaForCausalLM)", "layers: 3", "byte-level BPE", "q4_k_m"):
        assert text in shown


def test_a_checkpoint_that_cannot_be_read_exits_with_2(called: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    done = called("inspect", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "config.json: not valid JSON" in done.stderr
