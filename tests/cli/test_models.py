"""``edge-llama models``: what lies here, and every verb takes the names."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import ggufs
from model_stores import HASH, MODEL, environment, ollama

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_verbs_take_the_names(called: Cli, small_talk: Path, llama3: Path, tmp_path: Path) -> None:
    home = environment(tmp_path)
    small = tmp_path / ".lmstudio/models/some/small/a.gguf"
    small.parent.mkdir(parents=True)
    os.link(small_talk, small)
    shutil.copytree(llama3, tmp_path / ".cache/huggingface/hub/models--meta-llama--Llama-X/snapshots/123")
    rows = json.loads(called("models", "--json", env=home).stdout)
    assert [(row["name"], row["kind"], row["problem"]) for row in rows] == [
        ("meta-llama/Llama-X", "checkpoint", ""),
        ("some/small", "model", ""),
    ]
    assert (rows[1]["architecture"], rows[1]["bytes"]) == ("llama", small.stat().st_size)
    table = called("models", env=home).stdout
    assert "a checkpoint: convert it first" in table
    assert "some/small" in table
    assert json.loads(called("inspect", "some/small", "--json", env=home).stdout)["path"].endswith("a.gguf")
    output = tmp_path / "out.gguf"
    done = called("convert", "meta-llama/Llama-X", output, "--quant", "f16", "--quiet", env=home)
    assert done.returncode == 0, done.stderr
    assert output.exists()
    answered = called("run", "some/small", "What is the capital of Japan?", env=home)
    assert "Tokyo" in answered.stdout
    refused = called("run", "some/other", "Hi", env=home)
    assert refused.returncode == 2
    assert "or a name that edge-llama models shows" in refused.stderr


def test_what_cannot_be_run_is_listed_with_the_reason(called: Cli, small_talk: Path, tmp_path: Path) -> None:
    home = environment(tmp_path)
    blob = tmp_path / ".ollama" / "models" / "blobs" / f"sha256-{HASH}"
    blob.parent.mkdir(parents=True)
    ggufs.rewritten(small_talk, blob, called=lambda name: name.replace("blk.0.attn_q", "v.blk.0.attn_q"))
    layers = [{"mediaType": MODEL, "digest": f"sha256:{HASH}"}]
    ollama(tmp_path, "registry.ollama.ai/library/llama4/latest", {"layers": layers})
    (row,) = json.loads(called("models", "--json", env=home).stdout)
    assert row["problem"].startswith("has its vision tower in the same file (v.blk.0.attn_q")
    assert "can't be run" in called("models", env=home).stdout
    refused = called("run", "llama4:latest", "Hi", env=home)
    assert refused.returncode == 2
    assert "has its vision tower in the same file" in refused.stderr


def test_where_there_is_nothing_it_is_said_how_to_change_that(called: Cli, tmp_path: Path) -> None:
    done = called("models", env=environment(tmp_path))
    assert (done.stdout, done.returncode) == ("", 0)
    assert "no models found" in done.stderr
    assert called("models", "--json", env=environment(tmp_path)).stdout == "[]\n"
