"""Text towers for NPUs: their float graphs compute what transformers does, and integers stand for the right numbers."""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import checkpoints
import families
import llama4
import numpy as np
import onnxruntime
import pytest
import static_text
import torch
from numpy.typing import NDArray
from refusals import refusal
from transformers import AutoModelForCausalLM
from variants import edit_json

import converters
from converters.checkpoint import Tensor
from converters.sources import open_checkpoint
from converters.targets.onnx.first_position import first_position
from converters.targets.onnx.graph import DataFile, Graph
from converters.targets.onnx.integer_weights import Integers, RowForm, pairs, rest, rounded
from converters.targets.onnx.static_llama import Shape
from converters.targets.onnx.static_ranges import WINDOW, Reader, windows_of, write_graph
from converters.targets.onnx.static_text import graph_of, tower_of
from edge_llama.errors import OptionError
from edge_llama.files.formats import F32
from quant.ranges import read_ranges

TOLERANCE = 1e-3
"""Of logits in float32, as for other ONNX graphs; measured: 3e-5."""
COUNT = 3 * WINDOW - 10
SHAPE = Shape(WINDOW, COUNT, gives_all=True)


def yarn(folder: Path) -> Path:
    """A Llama 2 with YaRN from 16 to 4,096 positions, whose cosines and sines are longer than 1."""
    checkpoints.llama2(folder, old_spelling=False)
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    edit_json(folder / "config.json", rope_scaling=scaling)
    return folder


MAKES: dict[str, Callable[[Path], Path]] = {
    "llama": lambda path: checkpoints.llama3(path, dtype="F32"),
    "smollm": lambda path: checkpoints.smollm(path, dtype="F32"),
    "qwen2": families.qwen2,
    "qwen3": families.qwen3,
    "smollm3": families.smollm3,
    "mistral": families.mistral,
    "yarn": yarn,
    "llama4": lambda path: llama4.text_only(path, attention_chunk_size=8192, floor_scale=8192),
}


def reference(source: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """transformers' logits of all positions."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([list(ids)])).logits[0].numpy()
    return found


@pytest.mark.parametrize("family", MAKES)
def test_a_float_graph_equals_transformers(family: str, tmp_path: Path) -> None:
    """In windows of which the last begins in the one before, position 0 a constant where texts begin with a token."""
    source = MAKES[family](tmp_path / "source")
    checkpoint = open_checkpoint(source)
    hp, tensors = tower_of(checkpoint)
    bos = checkpoint.vocabulary.special.get("bos")
    first = None if bos is None else first_position(hp, tensors, bos)
    graph = Graph("floats", DataFile("floats.data"))
    graph_of(checkpoint)(hp, tensors, graph, SHAPE, RowForm(8), first, norm_is_one=False).write()
    write_graph(graph, tmp_path / "floats.onnx")
    session: Any = onnxruntime.InferenceSession(str(tmp_path / "floats.onnx"), providers=["CPUExecutionProvider"])
    reader = Reader(hp, tensors, SHAPE, has_first=first is not None)
    ids = np.random.default_rng(8).integers(3, 250, COUNT).tolist()

    def run(inputs: Any, outputs: Sequence[str]) -> list[Any]:
        return list(session.run(list(outputs), dict(inputs)))

    found = np.full((COUNT, hp.n_vocab), np.nan, np.float32)
    for rows, before in windows_of(ids):
        found[before : before + WINDOW] = reader.read(run, rows, before, also=["logits"])[0][0]
    expected = reference(source, ids if bos is None else [bos, *ids])[-len(ids) :]
    assert np.abs(found - expected).max() < TOLERANCE


def test_numbers_of_four_bits_stand_for_the_weights() -> None:
    """With a scale for each row, and in low-power blocks, whose scales are whole numbers of 1 to 16 times the row's."""
    rows = np.random.default_rng(1).standard_normal((6, 64), np.float32)
    rows[0] = 0
    rows[1, :32] *= 100
    tensor = Tensor("w", rows.shape, F32, lambda start, stop: rows[start:stop].view(np.uint8))
    for form in (RowForm(8), RowForm(4), RowForm(4, 32)):
        integers = Integers(tensor, form)
        numbers = integers.numbers.read(0, 6).view(np.int8).astype(np.float32)
        worth = integers.scales.read(0, 1).view(np.float32).reshape(-1, 1)
        if form.block:
            factors = integers.block_numbers.read(0, 2).T
            assert factors.min() >= 1
            assert factors[1:].max(axis=1).tolist() == [16] * 5
            worth = worth * np.repeat(factors, 32, axis=1)
        assert np.abs(numbers).max() <= form.most
        assert (np.abs(numbers * worth - rows) <= worth * 0.5001 + 1e-7).all()


def test_two_of_four_bits_share_a_byte() -> None:
    numbers = np.arange(-7, 8, dtype=np.int8)[None, :14]
    tensor = Tensor("w", numbers.shape, F32, lambda start, stop: numbers[start:stop].view(np.uint8))
    packed = pairs(tensor).read(0, 1)
    low, high = (packed & 15).astype(np.int8), (packed >> 4).astype(np.int8)
    unpacked = np.stack([low, high], axis=2).reshape(1, -1)
    assert np.array_equal(np.where(unpacked > 7, unpacked - 16, unpacked), numbers)


def test_two_terms_of_eight_bits_are_nearly_exact() -> None:
    rows = np.random.default_rng(2).standard_normal((4, 16), np.float32)
    tensor = Tensor("w", rows.shape, F32, lambda start, stop: rows[start:stop].view(np.uint8))
    coarse, left = (rounded(rest(tensor)), rounded(tensor))
    found = sum(each.read(0, 4).view(np.float32) for each in (coarse, left))
    assert np.abs(found - rows).max() < 1e-4
    assert np.abs(left.read(0, 4).view(np.float32) - rows).max() > 1e-3


@pytest.fixture(scope="module")
def ranges(small_talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranges") / "ranges.json"
    path.write_bytes(static_text.measured(small_talk).encode())
    return path


def test_ranges_survive_their_file(ranges: Path, tmp_path: Path) -> None:
    found = read_ranges(ranges)
    assert found.kind == "text"
    assert found.first is not None
    (tmp_path / "again.json").write_bytes(found.encode())
    again = read_ranges(tmp_path / "again.json")
    assert again.first is not None
    assert again.values == found.values
    assert np.array_equal(again.first.keys, found.first.keys)
    assert np.array_equal(again.first.values, found.first.values)


def _first(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["first"].update(changes)


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "of another model": (lambda content: content.update(tower="0" * 64), "of another text tower than"),
    "a value is missing": (lambda content: content["values"].pop("layers.0.keys"), "'layers.0.keys' is missing"),
    "an older file": (
        lambda content: content.update(schema="edge-llama text ranges 1"),
        "is no 'edge-llama ranges 1' and no 'edge-llama text ranges 2' file; calibrate again",
    ),
    "no count": (lambda content: content.pop("positions"), "tower, positions or values are missing"),
    "keys that are none": (_first(keys="?"), "'first' is damaged"),
    "too few keys": (_first(keys="AAAA"), "'first' is damaged"),
    "a shape of two": (_first(shape=[2, 2]), "'first' is damaged: of the shape"),
    "no token": (lambda content: content["first"].pop("token"), "'first' is damaged: 'token'"),
    "NaN": (
        lambda content: content["first"].update(
            keys=base64.b64encode(np.full(content["first"]["shape"], np.nan, "<f4").tobytes()).decode()
        ),
        "'first' is damaged: it is NaN or infinite",
    ),
    "another token": (
        _first(token=3),
        "its texts begin with token 3, those of",
    ),
    "one layer alone": (
        _first(shape=[1, 1, 1], keys="AAAAAA==", values="AAAAAA=="),
        "or its layers are others",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_damaged_ranges_are_refused(what: str, ranges: Path, small_talk: Path, tmp_path: Path) -> None:
    change, told = BAD[what]
    content = json.loads(ranges.read_text())
    change(content)
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps(content))
    with refusal(OptionError, told, path):
        converters.convert(small_talk, tmp_path / "out", to="onnx", quant="a16w8", calibration=[path])
    assert list(tmp_path.iterdir()) == [path]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no ranges": ({"calibration": []}, "--quant a16w8: is made by the ranges.*none are given; edge-llama calibrate"),
    "a window too wide": ({"n_ctx": 100, "window": 60}, "--window 60: .*at most half of --n-ctx"),
    "a window of nothing": ({"window": 1}, "--window 1: a graph reads 8 to 256"),
    "a context too long": ({"n_ctx": 10**6}, "--n-ctx 1,000,000: the model was trained with"),
    "blocks": ({"block": 64}, "--block: not with --quant a16w8"),
    "embeddings": ({"embeddings": True}, "--embeddings: not with --quant a16w8"),
    "an adapter": ({"lora": "adapter"}, "--lora: not with --quant a16w8"),
    "a window of 0 without": ({"quant": "int8", "calibration": [], "window": 0}, "--window: not with --quant int8"),
    "a role's own format": ({"tensor_types": {"attn_v": "int8"}}, "--tensor-type: not with"),
    "a window without": (
        {"quant": "int8", "calibration": [], "window": 32},
        "--window: not with --quant int8: it is for",
    ),
    "a cache of 4 bits": ({"kv_bits": 4}, "--kv-bits 4: unknown; known: 8 and 16"),
    "a cache of bits without": (
        {"quant": "int8", "calibration": [], "kv_bits": 16},
        "--kv-bits: not with --quant int8",
    ),
    "parts without": ({"quant": "int8", "calibration": [], "max_shard_bytes": 9}, "--max-shard-size: not with --quant"),
    "ranges that nobody needs": ({"quant": "int8"}, "has ranges of a text tower, which --quant a16w8 and a16w4 alone"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_that_do_not_fit_are_refused(what: str, ranges: Path, small_talk: Path, tmp_path: Path) -> None:
    options, told = REFUSED[what]
    given = {"to": "onnx", "quant": "a16w8", "calibration": [ranges], **options}
    with refusal(OptionError, told):
        converters.convert(small_talk, tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_the_same_ranges_twice_are_refused(ranges: Path, small_talk: Path, tmp_path: Path) -> None:
    with refusal(OptionError, "of which 2 are given; leave one out"):
        converters.convert(small_talk, tmp_path / "out", to="onnx", quant="a16w8", calibration=[ranges, ranges])
