"""``edge-llama inspect``."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from edge_llama.gguf import read_header

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


def test_json_holds_the_whole_header(cli: Cli, converted: Path) -> None:
    data = json.loads(cli("inspect", converted, "--json").stdout)
    header = read_header(converted)
    assert set(data["metadata"]) == set(header.fields)
    assert [tensor["name"] for tensor in data["tensors"]] == [tensor.name for tensor in header.tensors]
    assert data["weight_bytes"] == sum(tensor.nbytes for tensor in header.tensors)
    assert len(data["metadata"]["tokenizer.ggml.tokens"]) == 49152
