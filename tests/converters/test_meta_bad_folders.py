"""Bad folders in Meta's format: each a typed error that names file and field or tensor, and nothing left behind."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meta_folders
import pytest
import torch
from meta_folders import edited_ranks
from refusals import refusal

import converters
from edge_llama import CheckpointError


def edited_params(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        params = {**json.loads((folder / "params.json").read_text()), **fields}
        (folder / "params.json").write_text(json.dumps({k: v for k, v in params.items() if v != "REMOVE"}))

    return edit


def edited_shard(edit: Callable[[dict[str, torch.Tensor]], object], shard: int = 1) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / f"consolidated.{shard:02}.pth"
        tensors = torch.load(path)
        edit(tensors)
        torch.save(tensors, path)

    return rewrite


def replaced(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


WQ, WO = "layers.1.attention.wq.weight", "layers.1.attention.wo.weight"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "params.json missing": (lambda folder: (folder / "params.json").unlink(), r"params\.json is missing"),
    "params.json no JSON": (replaced("params.json", b"{"), r"params\.json: not valid JSON"),
    "params.json nested without end": (replaced("params.json", b"[" * 200_000), r"params\.json: not valid JSON"),
    "a field of a wrong type": (edited_params(n_layers="3"), r"params\.json: n_layers is '3'"),
    "a field missing": (edited_params(dim="REMOVE"), r"params\.json: dim is missing"),
    "a negative size": (edited_params(n_heads=-4), "n_heads is -4"),
    "NaN eps": (edited_params(norm_eps=float("nan")), "norm_eps is nan"),
    "an eps beyond all floats": (edited_params(norm_eps=10**400), "norm_eps is 1000"),
    "heads that do not divide": (edited_params(n_heads=3), "does not divide dim 128"),
    "KV heads that do not divide": (edited_params(n_kv_heads=3), "does not divide 4 heads"),
    "another count of KV heads": (edited_params(n_kv_heads=4), r"wk\.weight.*implies \[128, 128\] together"),
    "another width": (edited_params(dim=256), "the embedding has 628 rows.*dim is wrong"),
    "a multiplier that disagrees": (
        edited_params(ffn_dim_multiplier=1.3),
        "feed-forward width of 448, the weights have 352",
    ),
    "more layers than there are": (edited_params(n_layers=4), r"layers\.3\..*missing"),
    "fewer layers than there are": (edited_params(n_layers=2), r"layers\.2\..*not part"),
    "another vocab_size": (edited_params(vocab_size=1255), "vocab_size is 1255, the embedding has 1256 rows"),
    "a mixture of experts, as in Llama 4": (edited_params(moe_args={"num_experts": 16}), "2,048 special ones"),
    "vision": (edited_params(vision_chunk_size=448), "vision_chunk_size is set"),
    "quantized, of which it says too little": (
        edited_params(quantization_args={"group_size": 32}),
        "spinquant is missing",
    ),
    "quantized, which it is not": (
        edited_params(quantization_args={"group_size": 32, "spinquant": True}),
        "quantized releases in several shards",
    ),
    "an adapter beside the weights": (edited_params(lora_args={"rank": 8, "scale": 1.0}), "quantization_args is not"),
    "the first shard missing": (
        lambda folder: (folder / "consolidated.00.pth").unlink(),
        r"consolidated\.00\.pth is mis",
    ),
    "the last shard missing": (lambda folder: (folder / "consolidated.01.pth").unlink(), "a shard is missing"),
    "a shard twice": (
        lambda folder: shutil.copy(folder / "consolidated.00.pth", folder / "consolidated.02.pth"),
        "embedding has 1884 rows",
    ),
    "a tensor missing in one shard": (edited_shard(lambda t: t.pop(WQ)), rf"01\.pth: tensor '{WQ}' is missing"),
    "a tensor missing in all": (
        lambda folder: [edited_shard(lambda t: t.pop(WQ), shard)(folder) for shard in (0, 1)],
        "layers.1.self_attn.q_proj.weight' is missing",
    ),
    "a tensor too many": (
        lambda folder: [edited_shard(lambda t: t.update(x=torch.ones(2)), shard)(folder) for shard in (0, 1)],
        "'x' is not part of a Llama in Meta's format",
    ),
    "a share of another shape": (edited_shard(lambda t: t.update({WO: torch.ones(128, 65)})), rf"{WO}.*\[128, 65\]"),
    "a share of three dimensions": (
        edited_shard(lambda t: t.update({WO: torch.ones(128, 8, 8)})),
        rf"{WO}.*\[128, 8, 8\]",
    ),
    "a share of another dtype": (edited_shard(lambda t: t.update({WO: t[WO].half()})), rf"{WO}.* several dtypes"),
    "integers": (edited_shard(lambda t: t.update({WO: t[WO].long()})), rf"01\.pth: tensor '{WO}' has dtype Long"),
    "a norm of another size": (
        edited_shard(lambda t: t.update({"norm.weight": torch.ones(64)})),
        r"norm\.weight.*\[64\]",
    ),
    "NaN": (edited_shard(lambda t: t[WO].fill_(float("nan"))), r"blk\.1\.attn_output\.weight.* NaN"),
    "a shard that is a Git LFS pointer": (replaced("consolidated.01.pth", b"version https://git-lfs"), "git lfs pull"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), r"tokenizer\.model is missing"),
    "an empty tokenizer": (replaced("tokenizer.model", b""), "not a sentencepiece model"),
    "a corrupt tokenizer": (replaced("tokenizer.model", b"junk" * 99), "not a sentencepiece model"),
    "ranks with a bad line": (edited_ranks(lambda lines: lines.__setitem__(6, b"??")), "line 7 is b'\\?\\?'"),
    "ranks with bad base64": (edited_ranks(lambda lines: lines.__setitem__(6, b"abc 6")), "line 7 is b'abc 6'"),
    "ranks with a gap": (edited_ranks(lambda lines: lines.pop(300)), "line 301 .*rank 301, expected .*rank 300"),
    "ranks with a token twice": (
        edited_ranks(lambda lines: lines.__setitem__(9, lines[8].split()[0] + b" 9")),
        "line 10 .*expected a new token",
    ),
    "ranks with an endless token": (
        edited_ranks(lambda lines: lines.append(base64.b64encode(b"x" * 1000) + b" 1000")),
        "line 1,001 ",
    ),
    "ranks without a byte": (
        edited_ranks(lambda lines: lines.__setitem__(slice(None), lines[:200])),
        "no token for the byte",
    ),
    "more ranks than the embedding has rows": (
        edited_ranks(lambda lines: lines.append(base64.b64encode(b"\xff\xfe\xfd") + b" 1000")),
        "1,001 tokens and 256 special ones but the embedding has 1,256 rows",
    ),
}


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return meta_folders.llama3(tmp_path_factory.mktemp("two") / "meta", shards=2, tied=False)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_a_typed_error_and_leaves_nothing(name: str, two_shards: Path, tmp_path: Path) -> None:
    spoil, expected = BAD[name]
    folder = tmp_path / "meta"
    shutil.copytree(two_shards, folder)
    spoil(folder)
    with refusal(CheckpointError, expected, *([] if "blk" in expected else [folder])):
        converters.convert(folder, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]
