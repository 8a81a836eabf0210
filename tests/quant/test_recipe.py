"""Formats and bytes equal llama.cpp's quantizer on model shapes that no source gives yet, drawn anew each run.

The GGUF files here have the metadata and names that the quantizer asks for, and rows as few as will do.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from quantizer import FORMATS_WITHOUT_IMPORTANCE, WITHOUT_IMPORTANCE, drawn_importance, quantized_by_llama_cpp

from edge_llama.errors import OptionError
from edge_llama.files.formats import F32, FORMATS, Format
from edge_llama.files.gguf import encode_header, f32, read_header, string, u32
from quant.importance import Importance
from quant.kernels import recode
from quant.recipe import RECIPES, ROLES, Model, Slot, assign, needs_importance
from quant.reference import ggml

# Whole super-blocks; rows that fall back to blocks of 32; rows that no block divides.
COLUMNS = (256, 288, 72)
ALL = "EDGE_LLAMA_CASES" in os.environ
"""Also what takes ggml ten seconds to begin with, in each process: test_importance.py waits for it already."""


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    role: str
    layer: int
    shape: tuple[int, ...]
    format: Format
    raw: np.ndarray  # uint8 (rows, row_bytes)

    @property
    def slot(self) -> Slot:
        return Slot(self.role, self.layer, self.shape[-1], len(self.shape), self.format)


def drawn_model(kind: str, rng: np.random.Generator) -> Model:
    heads = 24
    kv_heads = heads // int(rng.choice([1, 2, 3, 4, 8]))
    layers = int(rng.integers(1, 34))
    return {
        "dense": Model(layers, heads, kv_heads),
        "8 experts": Model(layers, heads, kv_heads, n_expert=8),
        "16 experts": Model(layers, heads, kv_heads, n_expert=16),
        "80 layers": Model(80, heads, heads // 2),
        "80 layers, no groups": Model(80, heads, heads),
    }[kind]


def shapes(model: Model, hidden: int, ffn: int, tied: bool) -> Iterator[tuple[str, str, int, tuple[int, ...]]]:
    """(name, role, layer, shape) of every tensor."""
    yield "token_embd.weight", "token_embd", -1, (8, hidden)
    yield "output_norm.weight", "norm", -1, (hidden,)
    if not tied:
        yield "output.weight", "output", -1, (8, hidden)
    experts = (model.n_expert,) if model.n_expert else ()
    suffixes = ("_exps", "_shexp") if model.n_expert else ("",)
    for layer in range(model.n_layer):
        yield f"blk.{layer}.attn_norm.weight", "norm", layer, (hidden,)
        yield f"blk.{layer}.attn_v.bias", "bias", layer, (4,)
        for role in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{layer}.{role}.weight", role, layer, (4, hidden)
        if experts:
            yield f"blk.{layer}.ffn_gate_inp.weight", "router", layer, (*experts, hidden)
        for role, columns in (("ffn_gate", hidden), ("ffn_up", hidden), ("ffn_down", ffn)):
            for suffix in suffixes:
                shape = (*(experts if suffix == "_exps" else ()), 2, columns)
                yield f"blk.{layer}.{role}{suffix}.weight", role, layer, shape


def drawn_tensors(model: Model, rng: np.random.Generator) -> list[Tensor]:
    """In the quantizer's order: by layer, then by name."""
    hidden, ffn, tied = int(rng.choice(COLUMNS)), int(rng.choice(COLUMNS)), bool(rng.integers(2))
    print(f"{model} hidden={hidden} ffn={ffn} tied={tied}")
    dtype = FORMATS[str(rng.choice(["f32", "f16", "bf16"]))]
    tensors = []
    for name, role, layer, shape in sorted(shapes(model, hidden, ffn, tied), key=lambda row: (row[2], row[0])):
        format_ = dtype if len(shape) > 1 and role != "router" else F32
        rows = rng.standard_normal((int(np.prod(shape[:-1])), shape[-1])).astype(np.float32)
        tensors.append(Tensor(name, role, layer, shape, format_, ggml.quantize(rows, format_)))
    return tensors


def write(path: Path, model: Model, tensors: list[Tensor]) -> Path:
    """A GGUF file with what the quantizer asks for."""
    fields = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(model.n_layer),
        "llama.context_length": u32(64),
        "llama.embedding_length": u32(tensors[0].shape[-1]),
        "llama.feed_forward_length": u32(64),
        "llama.attention.head_count": u32(model.n_head),
        "llama.attention.head_count_kv": u32(model.n_head_kv),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.vocab_size": u32(8),
    }
    if model.n_expert:
        fields |= {"llama.expert_count": u32(model.n_expert), "llama.expert_used_count": u32(2)}
    header, offsets = encode_header(fields, [(tensor.name, tensor.shape, tensor.format) for tensor in tensors])
    with path.open("wb") as file:
        file.write(header)
        for tensor, offset in zip(tensors, offsets, strict=True):
            file.seek(offset)
            file.write(tensor.raw.tobytes())
        file.write(bytes(-file.tell() % 32))
    return path


def contents(path: Path) -> dict[str, tuple[str, bytes]]:
    data = path.read_bytes()
    return {
        info.name: (info.format.name, data[info.offset : info.offset + info.nbytes])
        for info in read_header(path).tensors
    }


def recoded(tensor: Tensor, format_: Format, importance: Importance | None) -> bytes:
    """Its bytes, each expert's rows by their own importance."""
    weights = importance.for_tensor(tensor.name, tensor.shape) if importance and format_.is_quantized else None
    if weights is None:
        return recode(tensor.raw, tensor.format, format_).tobytes()
    slices = zip(np.split(tensor.raw, len(weights)), weights, strict=True)
    return b"".join(recode(raw, tensor.format, format_, importance=own).tobytes() for raw, own in slices)


def check_against_llama_cpp(
    quant: str,
    model: Model,
    tensors: list[Tensor],
    folder: Path,
    tensor_types: dict[str, str] | None = None,
    importance: Importance | None = None,
) -> None:
    model = replace(model, has_importance=importance is not None)
    choices = assign(RECIPES[quant], [tensor.slot for tensor in tensors], model, tensor_types)
    ours = {
        tensor.name: (choice.format.name, recoded(tensor, choice.format, importance))
        for tensor, choice in zip(tensors, choices, strict=True)
    }
    source = write(folder / "floats.gguf", model, tensors)
    quantized = quantized_by_llama_cpp(source, folder / "theirs.gguf", RECIPES[quant].ftype, tensor_types, importance)
    theirs = contents(quantized)
    assert {name: format_ for name, (format_, _) in ours.items()} == {
        name: format_ for name, (format_, _) in theirs.items()
    }
    assert ours == theirs


@pytest.mark.parametrize("quant", [name for name in RECIPES if ALL or not name.startswith("iq1")])
@pytest.mark.parametrize("kind", ["dense", "8 experts", "16 experts", "80 layers", "80 layers, no groups"])
def test_formats_and_bytes_equal_llama_cpps(kind: str, quant: str, rng: np.random.Generator, tmp_path: Path) -> None:
    """With an importance matrix or without, where that can be; the head's and the embedding's are seldom known."""
    model = drawn_model(kind, rng)
    tensors = drawn_tensors(model, rng)
    importance = None
    if RECIPES[quant].needs_importance or (quant.startswith(("q", "iq")) and rng.integers(2)):
        ends = ("token_embd.weight", "output.weight")
        but = ends if rng.integers(3) else ()
        importance = drawn_importance({tensor.name: tensor.shape for tensor in tensors}, rng, but=but)
    print(f"importance={importance is not None}")
    check_against_llama_cpp(quant, model, tensors, tmp_path, importance=importance)


@pytest.mark.parametrize("kind", ["dense", "8 experts", "16 experts"])
@pytest.mark.parametrize("quant", [name for name, recipe in RECIPES.items() if recipe.default.is_quantized])
def test_what_llama_cpp_refuses_without_importance_is_what_needs_it(
    kind: str, quant: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    """Also where rows fall back: then a recipe may do without that needs it as a rule."""
    model = replace(drawn_model(kind, rng), n_layer=2)
    tensors = drawn_tensors(model, rng)
    choices = assign(RECIPES[quant], [tensor.slot for tensor in tensors], model)
    chosen = [(tensor, choice.format) for tensor, choice in zip(tensors, choices, strict=True)]
    needed = any(
        format_ is not tensor.format and needs_importance(RECIPES[quant], tensor.role, format_)
        for tensor, format_ in chosen
    )
    source = write(tmp_path / "floats.gguf", model, tensors)
    if needed:
        assert RECIPES[quant].needs_importance
        with pytest.raises(AssertionError):
            quantized_by_llama_cpp(source, tmp_path / "theirs.gguf", RECIPES[quant].ftype)
    else:
        check_against_llama_cpp(quant, model, tensors, tmp_path)


@pytest.mark.parametrize("quant", [name for name in WITHOUT_IMPORTANCE if RECIPES[name].default.is_quantized])
def test_overridden_roles_equal_llama_cpps_also_where_rows_fall_back(
    quant: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    model = drawn_model(str(rng.choice(["dense", "8 experts"])), rng)
    tensors = drawn_tensors(model, rng)
    roles = sorted({tensor.role for tensor in tensors} & set(ROLES))
    chosen = [str(role) for role in rng.choice(roles, 3, replace=False)]
    tensor_types = {role: str(rng.choice(FORMATS_WITHOUT_IMPORTANCE)) for role in chosen}
    print(tensor_types)
    check_against_llama_cpp(quant, model, tensors, tmp_path, tensor_types)


def slots(columns: int = 256, *roles: str) -> list[Slot]:
    return [Slot(role, 0, columns, 2, F32) for role in roles or ("token_embd", "attn_v")]


def test_an_override_holds_in_a_recipe_of_floats_where_llama_cpp_ignores_it() -> None:
    choices = assign(RECIPES["bf16"], slots(), Model(1, 4, 4), {"attn_v": "q8_0"})
    assert [choice.format.name for choice in choices] == ["bf16", "q8_0"]


@pytest.mark.parametrize(
    ("wanted", "columns", "used"), [("q4_k", 288, "q5_0"), ("iq4_xs", 288, "iq4_nl"), ("q8_0", 40, "f16")]
)
def test_an_override_that_falls_back_still_tells_what_was_wanted(wanted: str, columns: int, used: str) -> None:
    choice = assign(RECIPES["q8_0"], slots(columns), Model(1, 4, 4), {"attn_v": wanted})[1]
    assert (choice.wanted.name, choice.format.name) == (wanted, used)


def test_vectors_norms_and_routers_are_not_overridden() -> None:
    given = [Slot("attn_v", 0, 256, 1, F32), Slot("norm", 0, 256, 2, F32), Slot("router", 0, 256, 2, F32)]
    choices = assign(RECIPES["q4_0"], given, Model(1, 4, 4), {"attn_v": "q8_0"})
    assert [choice.format for choice in choices] == [F32, F32, F32]


@pytest.mark.parametrize(
    ("role", "name", "expected"),
    [
        ("attn", "q8_0", "attn=q8_0: no such role; known: token_embd, output, attn_q"),
        ("norm", "q8_0", "norm=q8_0: no such role"),
        ("attn_v", "q9", "attn_v=q9: no such format; known: f32, f16, bf16, q8_0"),
        ("attn_v", "tq1_0", "no such format"),
        ("ffn_up", "q8_0", "ffn_up=q8_0: the model has no such tensor; there are: token_embd, attn_v"),
        ("output", "q8_0", r"no such tensor \(its head is token_embd\)"),
    ],
)
def test_an_override_that_says_nothing_is_an_error_that_lists_what_is_known(
    role: str, name: str, expected: str
) -> None:
    with pytest.raises(OptionError, match=expected):
        assign(RECIPES["q4_0"], slots(), Model(1, 4, 4), {role: name})
