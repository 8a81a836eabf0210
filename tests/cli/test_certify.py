"""``convert --certify``, ``verify --reference`` and ``inspect`` on small models, as a user calls them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import sabotages
from ggufs import rewritten
from numpy.typing import NDArray

from converters import certifying
from edge_llama.fidelity.certified import put_at, read_certificate
from edge_llama.files.gguf import TensorInfo, read_header
from edge_llama.files.manifest import NAME

Cli = Callable[..., subprocess.CompletedProcess[str]]
WIDE = checkpoints.Shape(hidden=256, ffn=512, layers=2, heads=4, kv_heads=2)


@pytest.fixture(autouse=True)
def fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of what certificates are of, in shorter chunks."""
    monkeypatch.setattr(certifying, "N_TOKENS", 512)
    monkeypatch.setattr(certifying, "N_CTX", 128)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoints.llama3(tmp_path / "Llama-tiny", shape=WIDE, tied=False)


@pytest.fixture
def file(called: Cli, source: Path, tmp_path: Path) -> Path:
    done = called("convert", source, tmp_path / "tiny.gguf", "--certify", "--strict", "2")
    assert done.returncode == 0, done.stderr
    assert "certificate: q4_k_m: " in done.stderr
    assert "it does not say by whom" in done.stderr
    return tmp_path / "tiny.gguf"


def test_a_certificate_is_shown_and_measured_again(called: Cli, source: Path, file: Path) -> None:
    assert "KL divergence" in called("inspect", file).stdout
    shown = json.loads(called("inspect", file, "--json").stdout)["certificate"]
    assert shown["source"]["name"] == "Llama-tiny"
    assert 0 < shown["numbers"]["kl"] < 2
    assert [part["name"] for part in shown["layers"]] == ["layer 0", "layer 1"]
    assert {part["name"] for part in shown["components"]} == {"embedding", "final norm", "head", "RoPE"}
    asked = ("--n-ctx", 64, "--max-chunks", 2, "--plot", file.with_suffix(".html"))
    assert called("evaluate", file, "--reference", source, *asked).returncode == 0
    assert "Error by layer" in file.with_suffix(".html").read_text("utf-8")
    assert called("verify", file).returncode == 0
    done = called("verify", file, "--reference", source)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "what its certificate says" in done.stderr


def test_invented_numbers_fail_though_they_are_sealed(called: Cli, source: Path, file: Path) -> None:
    found = read_certificate(file)
    assert found is not None
    put_at(file, replace(found, numbers=replace(found.numbers, kl=found.numbers.kl / 2, top1=0.999)))
    assert called("verify", file).returncode == 0
    done = called("verify", file, "--reference", source)
    assert done.returncode == 1
    kl, top1 = done.stdout.splitlines()
    assert kl == f"numbers.kl is {found.numbers.kl / 2:.6g} in the certificate, {found.numbers.kl:.6g} was measured"
    assert top1.startswith("numbers.top1 is 0.999 in the certificate")


def test_another_checkpoint_fails(called: Cli, file: Path, tmp_path: Path) -> None:
    checkpoints.llama3(tmp_path / "other", shape=WIDE, tied=False, seed=5)
    done = called("verify", file, "--reference", tmp_path / "other", "--json")
    assert done.returncode == 1
    problems = json.loads(done.stdout)["problems"]
    assert problems[0].startswith("source: the certificate is of the weights")
    assert any(problem.startswith("layer 1: ") for problem in problems)


def test_a_file_without_a_certificate_is_measured_all_the_same(
    called: Cli, source: Path, file: Path, tmp_path: Path
) -> None:
    plain = rewritten(file, tmp_path / "plain.gguf", fields=_hashes(file))
    done = called("verify", plain, "--reference", source)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "carries no hashes" in done.stderr
    assert "carries no certificate" in done.stderr
    wrong = sabotages.heads_of_v_swapped(np.random.default_rng(0), plain, tmp_path / "wrong.gguf")
    done = called("verify", tmp_path / "wrong.gguf", "--reference", source)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{wrong.part}: blk.")


def test_above_strict_nothing_is_left(called: Cli, source: Path, tmp_path: Path) -> None:
    done = called("convert", source, tmp_path / "tiny.gguf", "--certify", "--strict", "1e-6", "--quant", "q4_0")
    assert done.returncode == 1
    assert "above --strict 1e-06" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"Llama-tiny"}


def test_a_bundle_and_an_onnx_folder_hold_it(called: Cli, source: Path, llama4_scout: Path, tmp_path: Path) -> None:
    for checkpoint, output, options in (
        (source, tmp_path / "onnx", ("--to", "onnx")),
        (llama4_scout, tmp_path / "bundle", ()),
    ):
        done = called("convert", checkpoint, output, "--certify", *options)
        assert done.returncode == 0, done.stderr
        assert json.loads((output / NAME).read_text("utf-8"))["certificate"]["numbers"]["n_tokens"] > 0
        assert called("verify", output).returncode == 0
        done = called("verify", output, "--reference", checkpoint)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("out", "--to", "safetensors", "--certify"), "no engine here runs"),
        (("out.gguf", "--tower", "vision", "--certify"), "vision tower alone"),
        (("out.gguf", "--tower", "text", "--strict", "0.1"), "is for --certify"),
        (("out.gguf", "--tower", "text", "--certify", "--strict", "-1"), "above 0"),
        (("out.gguf", "--tower", "text", "--certify", "--strict", "nan"), "above 0"),
    ],
)
def test_what_cannot_be_certified_is_refused_before_it_begins(
    called: Cli, llama4_scout: Path, options: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    done = called("convert", llama4_scout, tmp_path / options[0], *options[1:])
    assert done.returncode == 2
    assert told in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_vision_tower_fails_by_its_features(called: Cli, llama4_scout: Path, tmp_path: Path) -> None:
    done = called("convert", llama4_scout, tmp_path / "two", "--vision-to", "gguf", "--certify")
    assert done.returncode == 0, done.stderr
    found = read_certificate(tmp_path / "two")
    assert found is not None
    assert len(found.vision) == 4
    assert max(found.vision) < 0.02
    pair = tmp_path / "pair"
    pair.mkdir()
    (mmproj,) = (path for path in (tmp_path / "two").rglob("*.gguf") if "mmproj" in path.name)
    rewritten(tmp_path / "two" / "text.gguf", pair / "text.gguf", fields=_hashes(tmp_path / "two" / "text.gguf"))

    def permuted(info: TensorInfo, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return raw[::-1] if info.name == "v.blk.1.attn_v.weight" else raw

    rewritten(mmproj, pair / "mmproj.gguf", fields=_hashes(mmproj), data=permuted)
    done = called("verify", pair, "--reference", llama4_scout)
    assert done.returncode == 1, done.stderr
    assert "vision tower: features of tile 0 are off by" in done.stdout


def _hashes(path: Path) -> dict[str, None]:
    return {key: None for key in read_header(path).fields if key.startswith("edge_llama.")}


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_a_disk_that_is_full_while_it_is_measured_leaves_no_output(source: Path, tmp_path: Path) -> None:
    output, scratch = tmp_path / "tiny.gguf", tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000));"
        "from edge_llama.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "convert", str(source), str(output), "--certify"]
    around = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=around)
    assert done.returncode == 2, done.stderr
    assert "hidden states: File too large" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"Llama-tiny", "scratch"}
    assert not list(scratch.glob("edge-llama-*"))
