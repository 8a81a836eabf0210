"""What texts tell of a text tower, and what is written by it: whatever the source, its sizes, its family, its place."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import checkpoints
import families
import meta_folders
import numpy as np
import onnx
import onnxruntime
import pytest
import static_text
from numpy.typing import NDArray
from one_sequence import OneSequence
from refusals import refusal
from variants import edit_tensors

import converters
import edge_llama
from converters.checkpoint import Tensor
from converters.folder_files import end_ids
from converters.metadata.vocabulary import TokenType, Vocabulary
from converters.sources import open_checkpoint
from converters.targets.onnx.genai import padding
from converters.targets.onnx.graph import DataFile, Graph
from converters.targets.onnx.integer_weights import Integers, RowForm
from converters.targets.onnx.static_llama import Shape
from converters.targets.onnx.static_ranges import (
    WINDOW,
    Reader,
    Sample,
    _without_rare,
    contexts_of,
    measure_text,
    windows_of,
    write_graph,
)
from converters.targets.onnx.static_text import tower_of
from converters.tensors.transposed import transposed
from edge_llama.backends.onnxruntime.static import StaticTower
from edge_llama.backends.towers import locate
from edge_llama.errors import CheckpointError, EngineError, OptionError, OutputError
from edge_llama.files.formats import F32, FORMATS
from edge_llama.files.onnx_static import read_static
from quant.calibration import Watched
from quant.kernels import recode

IDS: list[int] = np.random.default_rng(3).integers(3, 250, 70).tolist()
N_CTX = 64
OPTIONS: dict[str, Any] = {"to": "onnx", "n_ctx": N_CTX, "window": WINDOW}
TALK = "<|im_start|>user\nHello there{}<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"


def measured(source: Path, path: Path, texts: list[Sample] | None = None) -> Path:
    """The ranges of ``source``, in the file ``path``."""
    path.write_bytes(measure_text(open_checkpoint(source), texts or [IDS], threads=1).encode())
    return path


@pytest.fixture(scope="module")
def ranges(small_talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured(small_talk, tmp_path_factory.mktemp("ranges") / "ranges.json", list(static_text.chats()))


@pytest.mark.parametrize("texts", [[], ["Hello"], ["Hello", "Hello", [5] * 9]])
def test_too_little_text_is_refused(texts: list[Sample], small_talk: Path) -> None:
    with refusal(OptionError, "fewer than 32 tokens"):
        measure_text(open_checkpoint(small_talk), texts, threads=1)


def test_a_family_without_such_a_graph_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(families.gemma3(tmp_path / "gemma"))
    with refusal(CheckpointError, "there is no graph in integers"):
        measure_text(checkpoint, ["word " * 64], threads=1)


def test_no_token_is_left_out(small_talk: Path) -> None:
    texts: list[Sample] = [[5] * 10, [1, *[6] * 40], [7] * 70, [8] * 3]
    expected = [[5] * 10 + [6] * 40, [7] * 64, [7] * 29 + [8] * 3]
    assert contexts_of(open_checkpoint(small_talk), texts, 64) == expected
    assert [before for _, before in windows_of(range(70))] == [0, 32, 38]


SHAPE = checkpoints.Shape(hidden=192, ffn=512, layers=2, heads=8, kv_heads=2)
"""Heads of 24, and more than 128 rows of queries."""


def test_ranges_and_graphs_do_not_depend_on_the_sources_form(tmp_path: Path) -> None:
    hugging_face = checkpoints.llama2(tmp_path / "hf" / "llama-2-chat", shape=SHAPE, seed=4)
    gguf = converters.convert(hugging_face, tmp_path / "f32.gguf", quant="f32").output
    meta = meta_folders.llama2(tmp_path / "meta" / "llama-2-chat", shape=SHAPE, seed=4)
    expected = measured(hugging_face, tmp_path / "ranges.json")
    assert json.loads(expected.read_text())["positions"] == len(IDS)
    converters.convert(hugging_face, tmp_path / "out", quant="a16w8", calibration=expected, **OPTIONS)
    for source in (gguf, meta):
        found = measured(source, tmp_path / "found.json")
        assert found.read_bytes() == expected.read_bytes()
        converters.convert(source, tmp_path / "again", quant="a16w8", calibration=found, force=True, **OPTIONS)
        for name in ("prompt.onnx", "token.onnx", "decoder.onnx.data"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), (source, name)


def test_a_tower_whose_norms_alone_are_the_same_is_another(tmp_path: Path) -> None:
    source = checkpoints.llama3(tmp_path / "source", dtype="F32")
    path = measured(source, tmp_path / "ranges.json")
    name = "model.layers.2.self_attn.v_proj.weight"
    edit_tensors(source, lambda tensors: tensors.update({name: tensors[name] + np.float32(0.001)}))
    with refusal(OptionError, "of another text tower than", path, source):
        converters.convert(source, tmp_path / "out", quant="a16w8", calibration=path, **OPTIONS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("family", ["llama3", "qwen2"])
def test_weights_that_are_not_finite_are_told_by_name(family: str, value: float, tmp_path: Path) -> None:
    """Where position 0 is computed first, and where it is not."""
    folder = tmp_path / "source"
    source = families.qwen2(folder) if family == "qwen2" else checkpoints.llama3(folder, dtype="F32")

    def spoil(tensors: dict[str, NDArray[np.float32]]) -> None:
        matrix = tensors["model.layers.1.mlp.up_proj.weight"].copy()
        matrix[3, 5] = value
        tensors["model.layers.1.mlp.up_proj.weight"] = matrix

    edit_tensors(source, spoil)
    with refusal(CheckpointError, r"tensor '.*layers\.1\.mlp\.up.*': 1 weights are NaN or infinite"):
        measure_text(open_checkpoint(source), [IDS], threads=1)


def test_a_temporary_folder_that_is_too_small_is_told_before_the_work(
    small_talk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage, told = shutil.disk_usage(tmp_path), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
        with refusal(OutputError, r"1,000 bytes are free, but measuring needs [\d,]+: .*TMPDIR"):
            measure_text(open_checkpoint(small_talk), [IDS], threads=1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    measure_text(open_checkpoint(small_talk), [IDS], threads=1, tell=told.append)
    (sentence,) = told
    assert sentence.startswith(f"{tmp_path}: the tower lies there in float32 while it is measured, ")
    assert not list(tmp_path.iterdir())


def test_what_onnx_runtime_says_is_an_error_of_the_engine(tmp_path: Path) -> None:
    graph = Graph("one", DataFile("one.data"))
    graph.output(graph.op("Identity", graph.input("x", (1, 2)), name="y"), (1, 2))
    write_graph(graph, tmp_path / "one.onnx")
    watched = Watched(tmp_path / "one.onnx", 1)
    watched.run({"x": np.array([[-1, 2]], np.float32)})
    assert watched.values()["y"] == (-1, 2)
    with pytest.raises(EngineError, match="ONNX Runtime failed at measuring: "):
        watched.run({"x": np.zeros((1, 3), np.float32)})


def test_what_grows_with_the_weights_lies_beside_the_graphs(ranges: Path, small_talk: Path, tmp_path: Path) -> None:
    """In each graph lie numbers of values alone, and position 0; zero points of a size are the same bytes."""
    converters.convert(small_talk, tmp_path / "out", quant="a16w4", calibration=[ranges], **OPTIONS)
    hp, _ = tower_of(open_checkpoint(small_talk))
    places = []
    for name in ("prompt.onnx", "token.onnx"):
        stored = onnx.load(tmp_path / "out" / name, load_external_data=False).graph.initializer
        within = [tensor for tensor in stored if tensor.data_location != onnx.TensorProto.EXTERNAL]
        assert max(int(np.prod(tensor.dims)) for tensor in within) <= max(hp.n_head_kv * hp.head_dim, 8)
        beside = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in stored}
        places.append({tensor: where["offset"] for tensor, where in beside.items() if where})
    assert places[0] == places[1]
    gate, up = (places[0][f"layers.0.mlp.{part}.weight.zero"] for part in ("gate", "up"))
    assert gate == up
    assert "layers.0.mlp.gate.weight.scale.zero" in places[0]


@pytest.mark.parametrize("quant", ["a16w8", "a16w4"])
def test_matrices_of_odd_sizes_are_near_their_floats(quant: str, tmp_path: Path) -> None:
    """353 rows have 8 bits, as two of 4 would share a byte; 353 columns are no blocks."""
    source = checkpoints.llama3(tmp_path / "source", shape=checkpoints.Shape(ffn=353), dtype="F32")
    path = measured(source, tmp_path / "ranges.json")
    converters.convert(source, tmp_path / "out", quant=quant, calibration=str(path), **OPTIONS)
    graph = onnx.load(tmp_path / "out" / "prompt.onnx", load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    few = onnx.TensorProto.INT4 if quant == "a16w4" else onnx.TensorProto.INT8
    assert kinds["layers.0.mlp.gate.weight.quantized"] == onnx.TensorProto.INT8
    assert kinds["layers.0.mlp.down.weight.quantized"] == few
    assert "layers.0.mlp.down.weight.block_numbers" not in kinds
    assert ("layers.0.attention.q.weight.block_numbers" in kinds) == (quant == "a16w4")
    session: Any = onnxruntime.InferenceSession(tmp_path / "out" / "prompt.onnx", providers=["CPUExecutionProvider"])
    checkpoint = open_checkpoint(source)
    reader = Reader(*tower_of(checkpoint), Shape(WINDOW, N_CTX), has_first=True, kept_bits=8)
    (found,) = reader.read(lambda given, names: session.run(list(names), given), IDS[:WINDOW], 0, also=["logits"])
    bos = checkpoint.vocabulary.special["bos"]
    expected = families.prompt_logits(families.reference(source), [bos, *IDS[:WINDOW]])
    assert np.corrcoef(found.reshape(-1), expected)[0, 1] > (0.99 if quant == "a16w8" else 0.8)


def test_a_chat_of_a_family_without_a_first_token_is_read(tmp_path: Path) -> None:
    """Position 0 is measured and computed like others, and the mask has no column for it."""
    source = families.qwen2(tmp_path / "source")
    texts: list[Sample] = ["".join(TALK.format("." * count) for count in range(6))]
    path = measured(source, tmp_path / "ranges.json", texts)
    folder = converters.convert(source, tmp_path / "out", quant="a16w8", calibration=path, **OPTIONS).output
    artifact = read_static(locate(folder))
    assert artifact.begins is None
    with edge_llama.open(folder, threads=1, device="cpu") as model:
        ids = model.template.tokens([edge_llama.Message("user", "Hello there.")])
        answer = model.chat().send("Hello there.", temperature=0, max_tokens=2).result()
        assert answer.timings.prompt_tokens == len(ids)
    with closing(StaticTower(artifact, n_ctx=artifact.n_ctx_train, threads=1, n_batch=512)) as tower:
        sequence = OneSequence(tower)
        for at in range(0, len(ids), WINDOW):
            sequence.decode(ids[at : at + WINDOW])
        found = np.array(sequence.logits())
    expected = families.prompt_logits(families.reference(source), ids)
    assert np.corrcoef(found.reshape(-1), expected)[0, 1] > 0.95


@pytest.mark.parametrize(("quant", "bits"), [("a16w8", 8), ("a16w4", 4)])
def test_a_source_that_is_quantized_is_told(
    quant: str, bits: int, ranges: Path, small_talk: Path, tmp_path: Path
) -> None:
    plan = converters.plan(small_talk, tmp_path / "out", quant=quant, calibration=ranges, **OPTIONS)
    warning = next(told for told in plan.warnings if "tensors are quantized a second time" in told)
    assert f"from q8_0 to int{bits}" in warning
    assert "quality is lost twice" in warning


PADS = {
    "llama2": (checkpoints.llama2, "<unk>"),
    "llama3": (checkpoints.llama3, "<|finetune_right_pad_id|>"),
    "smollm": (checkpoints.smollm, "<|endoftext|>"),
    "qwen2": (families.qwen2, None),
}


@pytest.mark.parametrize("family", PADS)
def test_no_prompt_has_the_token_for_padding(family: str, tmp_path: Path) -> None:
    make, text = PADS[family]
    vocabulary = open_checkpoint(make(tmp_path / "source")).vocabulary
    pad = padding(vocabulary, end_ids(vocabulary))
    assert pad is not None
    if text is None:  # a row of the embedding that no token has
        assert vocabulary.types[pad] == TokenType.UNUSED
    else:
        assert vocabulary.tokens[pad] == text


def test_where_every_end_is_written_the_first_pads() -> None:
    tokens = ["a", "<s>", "</s>", "<end>"]
    types = [TokenType.NORMAL] + [TokenType.CONTROL] * 3
    template = {"default": "{{ bos_token }}<end>{{ eos_token }}"}
    vocabulary = Vocabulary("gpt2", "", tokens, types, special={"bos": 1, "eos": 2}, chat_templates=template)
    assert padding(vocabulary, [2, 3]) == 2
    assert padding(vocabulary, []) is None


def test_the_pad_is_written(ranges: Path, small_talk: Path, tmp_path: Path) -> None:
    converters.convert(small_talk, tmp_path / "out", quant="a16w8", calibration=ranges, **OPTIONS)
    model = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    assert open_checkpoint(small_talk).vocabulary.tokens[model["pad_token_id"]] == "<|endoftext|>"


class Counted:
    """Rows in memory, and the bytes that were read of them."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self.bytes, self.read = rows.view(np.uint8), 0

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.stripe(start, stop, 0, self.bytes.shape[1])

    def stripe(self, start: int, stop: int, first: int, last: int) -> NDArray[np.uint8]:
        self.read += (stop - start) * (last - first)
        return self.bytes[start:stop, first:last]


FORMS = [RowForm(8), RowForm(4), RowForm(4, 32)]


def in_stripes(numbers: Tensor, stripe: int, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """``numbers`` transposed, so many of its columns at once."""
    monkeypatch.setattr("converters.tensors.transposed._STRIPE", stripe * numbers.rows)
    columns = transposed(numbers)
    assert columns.step == stripe
    starts = range(0, columns.rows, stripe)
    return np.concatenate([columns.read(at, min(at + stripe, columns.rows)) for at in starts])


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_is_read_twice_whatever_its_stripes(form: RowForm, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(5).standard_normal((300, 64), np.float32)
    source = Counted(rows)
    numbers = Integers(Tensor("w", rows.shape, F32, source), form).numbers
    found = in_stripes(numbers, form.block or 5, monkeypatch)
    assert source.read == 2 * rows.nbytes
    assert np.array_equal(found, numbers.read(0, len(rows)).T)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["f32", "bf16", "q8_0"])
def test_stripes_need_not_be_blocks(name: str, form: RowForm, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(6).standard_normal((40, 96), np.float32)
    raw = recode(rows.view(np.uint8), F32, FORMATS[name])
    source = Tensor("w", rows.shape, FORMATS[name], lambda start, stop: raw[start:stop])
    numbers = Integers(source, form).numbers
    assert np.array_equal(in_stripes(numbers, 7, monkeypatch), numbers.read(0, len(rows)).T)
    assert numbers.requantized == (f"q8_0 to int{form.bits}" if name == "q8_0" else "")


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([100.0] * 60 + [8000.0], 800.0),  # one token in one of 61
        ([100.0] * 40 + [8000.0], 8000.0),  # no longer rare
        ([100.0] * 60 + [700.0], 700.0),  # nor that far
    ],
)
def test_what_a_rare_token_drives_far_beyond_all_others_is_cut(windows: list[float], expected: float) -> None:
    """Of residuals, and of what is computed of them; all else is as it was measured."""
    ends = np.array([[-1.0] * len(windows), windows], np.float32)
    names = {"layers.3.mlp.residual": 1, "layers.3.norm1.squares": 2, "layers.3.attention.q": 0}
    found = _without_rare({name: ends ** (power or 1) for name, power in names.items()})
    assert found.keys() <= {"layers.3.mlp.residual", "layers.3.norm1.squares"}
    assert found.get("layers.3.mlp.residual", (-1, max(windows)))[1] == pytest.approx(expected)
    assert found.get("layers.3.norm1.squares", (1, max(windows) ** 2))[1] == pytest.approx(expected**2)
