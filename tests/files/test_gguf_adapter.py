"""Adapters in GGUF files that are damaged, hostile or another model's: typed errors before native code sees them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from adapters import LINEAR, SMALL, trained
from ggufs import read_tensor, rewritten
from refusals import refusal

import converters
import edge_llama
from edge_llama import ArtifactError, OptionError
from edge_llama.backends.registry import open_artifact
from edge_llama.backends.towers import locate
from edge_llama.files.formats import F32, FORMATS
from edge_llama.files.gguf import TensorInfo, ValueType, array, encode_header, f32, read_header, string, u32
from edge_llama.files.gguf import Value as GGUFValue
from edge_llama.files.gguf_adapter import check_fits, read_adapter

Q, Q_A, Q_B = "blk.1.attn_q.weight", "blk.1.attn_q.weight.lora_a", "blk.1.attn_q.weight.lora_b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base.gguf``, ``tied.gguf``, and ``good.gguf``, an adapter for the first."""
    at = tmp_path_factory.mktemp("adapters")
    base = checkpoints.llama3(at / "Base", shape=SMALL, dtype="F32", tied=False)
    tied = checkpoints.llama3(at / "Tied", shape=SMALL, dtype="F32")
    adapter = trained(base, at / "adapter", r=2, target_modules=[*LINEAR, "embed_tokens", "lm_head"])
    converters.convert(base, at / "base.gguf", quant="f32")
    converters.convert(tied, at / "tied.gguf", quant="f32")
    converters.convert(adapter, at / "good.gguf", base=base)
    return at


def fits(adapter: Path, model: Path) -> None:
    check_fits(read_adapter(adapter), open_artifact(locate(str(model))))


def fields(**values: GGUFValue | None) -> Callable[[Path, Path], Path]:
    named = {key.replace("__", "."): value for key, value in values.items()}
    return lambda source, output: rewritten(source, output, fields=named)


def without(*names: str) -> Callable[[Path, Path], Path]:
    return lambda source, output: rewritten(source, output, names=lambda info: info.name not in names)


def called(old: str, new: str) -> Callable[[Path, Path], Path]:
    return lambda source, output: rewritten(source, output, called=lambda name: new if name == old else name)


def shaped(name: str, *shape: int, format_: str = "f32") -> Callable[[Path, Path], Path]:
    """With other numbers of another shape in place of a tensor's."""

    def spoil(source: Path, output: Path) -> Path:
        header = read_header(source)
        stored = FORMATS[format_]

        def data(info: TensorInfo) -> bytes:
            if info.name != name:
                return read_tensor(source, info).tobytes()
            return bytes(int(np.prod(shape[:-1])) * stored.row_bytes(shape[-1]))

        table = [
            (t.name, shape if t.name == name else t.shape, stored if t.name == name else F32) for t in header.tensors
        ]
        head, _ = encode_header(header.fields, table)
        blocks = map(data, header.tensors)
        output.write_bytes(head + b"".join(block + bytes(-len(block) % 32) for block in blocks))
        return output

    return spoil


HOSTILE: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "a model": (fields(general__type=string("model")), "is no adapter: general.type is 'model'"),
    "no type": (fields(general__type=None), "is no adapter: general.type is ''"),
    "a type of another type": (fields(general__type=u32(1)), "general.type is 1, expected a value of type str"),
    "a control vector": (fields(adapter__type=string("cvec")), "adapter.type is 'cvec'; supported: lora"),
    "a kind of another type": (fields(adapter__type=f32(1)), "adapter.type is 1.0, expected a value of type str"),
    "no architecture": (fields(general__architecture=None), "general.architecture is missing"),
    "an architecture of another type": (fields(general__architecture=u32(1)), "general.architecture is 1, expected"),
    "no alpha": (fields(adapter__lora__alpha=None), "adapter.lora.alpha is missing"),
    "an alpha that is whole": (fields(adapter__lora__alpha=u32(8)), "adapter.lora.alpha is 8, expected a finite"),
    "an alpha of 64 bits": (
        fields(adapter__lora__alpha=GGUFValue(ValueType.FLOAT64, 8.0)),
        "adapter.lora.alpha is 8.0, expected a finite number of 32 bits",
    ),
    "alphas": (fields(adapter__lora__alpha=array(ValueType.FLOAT32, [1.0])), "expected a finite number"),
    "an alpha that is none": (fields(adapter__lora__alpha=f32(float("nan"))), "adapter.lora.alpha is nan"),
    "activated by tokens": (
        fields(adapter__alora__invocation_tokens=array(ValueType.UINT32, [1])),
        r"alora.invocation_tokens: it is an adapter that begins to act at certain tokens",
    ),
    "of several files": (fields(split__count=u32(2)), "is a part of several files"),
    "half a pair": (without(Q_A), f"{Q_A}' is missing"),
    "the other half": (without(Q_B), f"{Q_B}' is missing"),
    "a norm": (called(Q_A, "blk.1.attn_norm.weight"), "attn_norm.weight' is no matrix of an adapter"),
    "beside a norm": (called(Q_A, "blk.1.attn_norm.weight.lora_a"), "stands beside a weight that takes no adapter"),
    "beside experts": (called(Q_A, "blk.1.ffn_up_exps.weight.lora_a"), "stands beside a weight that takes no adapter"),
    "its suffix within": (called(Q_A, "blk.1.lora_a.attn_q.weight.lora_a"), "that takes no adapter"),
    "ranks that differ": (shaped(Q_A, 3, 32), f"{Q_B}' has rank 2, its other half 3"),
    "one dimension": (shaped(Q_A, 64), f"{Q_A}' has 1 dimensions, expected 2"),
    "three dimensions": (shaped(Q_A, 2, 2, 32), f"{Q_A}' has 3 dimensions, expected 2"),
    "integers": (shaped(Q_A, 2, 32, format_="i32"), f"{Q_A}' is stored as i32"),
    "a format that asks for more": (shaped(Q_A, 2, 32, format_="q8_1"), f"{Q_A}' is stored as q8_1"),
    "nothing in it": (lambda source, output: rewritten(source, output, names=lambda _: False), "holds no matrices"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_with_a_file_is_a_typed_error(name: str, folder: Path, tmp_path: Path) -> None:
    spoil, expected = HOSTILE[name]
    bad = spoil(folder / "good.gguf", tmp_path / "bad.gguf")
    with refusal(ArtifactError, expected, bad):
        read_adapter(bad)


MISFITS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "another architecture": (fields(general__architecture=string("qwen2")), "an adapter for 'qwen2', .* is 'llama'"),
    "another layer": (
        lambda source, output: rewritten(source, output, called=lambda name: name.replace("blk.1.", "blk.7.")),
        "stands beside 'blk.7.*', which .*base.gguf has not; is it an adapter for another model?",
    ),
    "other inputs": (shaped(Q_A, 2, 64), rf"{Q_A}' has shape \[2, 64\], rank 2 and .*base.gguf imply \[2, 32\]"),
    "other outputs": (shaped(Q_B, 64, 2), rf"{Q_B}' has shape \[64, 2\], rank 2 and .* imply \[32, 2\]"),
    "another vocabulary": (
        shaped("token_embd.weight.lora_a", 5, 2),
        r"token_embd.weight.lora_a' has shape \[5, 2\], rank 2 and .* imply \[\d+, 2\]",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_the_model_names_both(name: str, folder: Path, tmp_path: Path) -> None:
    spoil, expected = MISFITS[name]
    bad = spoil(folder / "good.gguf", tmp_path / "bad.gguf")
    with refusal(ArtifactError, expected, bad, folder / "base.gguf"):
        fits(bad, folder / "base.gguf")
    with pytest.raises(ArtifactError, match=expected):
        edge_llama.open(folder / "base.gguf", adapters=[bad])


def test_a_good_one_fits_and_not_a_model_whose_embedding_is_its_head(folder: Path) -> None:
    fits(folder / "good.gguf", folder / "base.gguf")
    with refusal(ArtifactError, "would change a matrix that is embedding and head of", folder / "tied.gguf"):
        fits(folder / "good.gguf", folder / "tied.gguf")


def test_an_architecture_whose_graph_is_not_known_here(folder: Path, tmp_path: Path) -> None:
    """llama.cpp may assert what no check here foresees."""
    other = {"general.architecture": string("phi3")}
    adapter = rewritten(folder / "good.gguf", tmp_path / "a.gguf", fields=other)
    header = read_header(folder / "base.gguf")
    moved = {
        key.replace("llama.", "phi3.", 1): value for key, value in header.fields.items() if key.startswith("llama.")
    }
    model = rewritten(folder / "base.gguf", tmp_path / "m.gguf", fields={**moved, **other})
    with refusal(ArtifactError, "adapters for 'phi3' are not run here", adapter):
        fits(adapter, model)


def test_every_cut_is_told(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "good.gguf").read_bytes()
    for size in (0, 3, 24, 200, len(whole) // 2, len(whole) - 32):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=r"cut\.gguf"):
            read_adapter(tmp_path / "cut.gguf")


def test_what_else_may_be_named(folder: Path, tmp_path: Path) -> None:
    with refusal(
        ArtifactError, "is a folder.*edge-llama convert .*adapter OUTPUT.gguf --base BASE", folder / "adapter"
    ):
        edge_llama.open(folder / "base.gguf", adapters=[folder / "adapter"])
    with refusal(ArtifactError, "cannot be read", tmp_path / "none.gguf"):
        edge_llama.open(folder / "base.gguf", adapters=[tmp_path / "none.gguf"])
    with refusal(ArtifactError, "is no adapter", folder / "base.gguf"):
        edge_llama.open(folder / "base.gguf", adapters=[folder / "base.gguf"])
    with refusal(ArtifactError, "this is an adapter, which has no model in it; .*--adapter", folder / "good.gguf"):
        edge_llama.open(folder / "good.gguf")


WRONG: dict[str, tuple[Any, str]] = {
    "a text": ("a.gguf", "adapters is 'a.gguf', expected files by name"),
    "a number": ([1], "adapters: 1 is no file's path as text"),
    "bytes": ({"a": b"a.gguf"}, "adapters: b'a.gguf' is no file's path as text"),
    "an empty name": ({"": "a.gguf"}, "one has an empty name"),
    "two of a name": (["x/a.gguf", "y/a.gguf"], "two are called 'a'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_option_that_is_none(name: str, folder: Path) -> None:
    value, expected = WRONG[name]
    with pytest.raises(OptionError, match=expected):
        edge_llama.open(folder / "base.gguf", adapters=value)
