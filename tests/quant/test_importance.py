"""Importance matrices as files: both of llama.cpp's forms, byte for byte, and all that may be wrong with them."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imatrix_files
import numpy as np
import pytest
from refusals import refusal

from edge_llama.errors import ArtifactError, OptionError, OutputError
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import Value, ValueType, array, encode_header, read_header, string, u32
from quant.importance import MODEL, Importance, Sums, read_importance, write_importance
from quant.importance.partial import Partial

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAME, EXPERTS = "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"


def sums(*rows: list[float], counts: list[int]) -> Sums:
    return Sums(np.array(rows, np.float32), np.array(counts, np.int64))


@pytest.fixture
def importance() -> Importance:
    entries = {
        NAME: sums([3.0, 0.0, 1.5, 6.0], counts=[3]),
        EXPERTS: sums([1, 2, 3, 4], [0, 0, 0, 0], [5, 6, 7, 8], counts=[2, 0, 7]),
    }
    return Importance(entries, 3, 512, ("a text.txt", "Straße.txt"), {MODEL: "ab" * 32})


def test_what_is_written_is_read_again(importance: Importance, tmp_path: Path) -> None:
    write_importance(tmp_path / "i.gguf", importance)
    read = read_importance(tmp_path / "i.gguf")
    assert read.entries.keys() == importance.entries.keys()
    for name, (values, counts) in importance.entries.items():
        assert np.array_equal(read.entries[name].sums, values)
        assert np.array_equal(read.entries[name].counts, counts)
    assert (read.n_chunks, read.chunk_size, read.datasets) == (3, 512, ("a text.txt", "Straße.txt"))
    assert (read.notes, read.path) == (importance.notes, tmp_path / "i.gguf")


@pytest.mark.parametrize("name", ["dense.gguf", "mixture.gguf"])
def test_a_file_of_llama_imatrix_is_written_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    write_importance(tmp_path / name, read_importance(imatrix_files.FOLDER / name))
    assert (tmp_path / name).read_bytes() == (imatrix_files.FOLDER / name).read_bytes()


@pytest.mark.parametrize("name", ["dense", "mixture"])
def test_the_older_form_is_written_as_llama_imatrix_does(name: str, tmp_path: Path) -> None:
    write_importance(tmp_path / "i.dat", read_importance(imatrix_files.FOLDER / f"{name}.gguf"))
    assert (tmp_path / "i.dat").read_bytes() == (imatrix_files.FOLDER / f"{name}.dat").read_bytes()


@pytest.mark.parametrize("name", ["dense", "mixture"])
def test_both_forms_weigh_alike(name: str) -> None:
    new, old = (read_importance(imatrix_files.FOLDER / f"{name}.{form}") for form in ("gguf", "dat"))
    assert (old.n_chunks, old.chunk_size, old.datasets) == (new.n_chunks, 0, new.datasets)
    assert old.entries.keys() == new.entries.keys()
    for entry in new.entries:
        np.testing.assert_allclose(old.weights(entry).ravel(), new.weights(entry).ravel(), rtol=1e-6)


def test_weights_are_means_and_one_where_no_token_was_seen(importance: Importance) -> None:
    """As llama-quantize has it: of each expert over its own tokens, in float32."""
    assert importance.weights(NAME).tolist() == [[1.0, 0.0, 0.5, 2.0]]
    assert importance.weights(NAME).dtype == np.float32
    by_expert = importance.weights(EXPERTS)
    assert by_expert[0].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert by_expert[1].tolist() == [1.0] * 4
    assert np.array_equal(by_expert[2], np.array([5, 6, 7, 8], np.float32) / np.float32(7))
    assert importance.with_few_tokens(3) == {EXPERTS: [0, 1]}


def test_an_importance_matrix_fits_its_own_model_alone(importance: Importance) -> None:
    shapes = {NAME: (8, 4), EXPERTS: (3, 8, 4), "blk.0.attn_q.weight": (4, 4)}
    importance.check(shapes)
    weights = importance.for_tensor(EXPERTS, (3, 8, 4))
    assert weights is not None
    assert weights.shape == (3, 4)
    assert importance.for_tensor("blk.0.attn_q.weight", (4, 4)) is None
    for other, told in (
        (shapes | {NAME: (8, 8)}, f"{NAME} has 4 values, the model's 1 x 8"),
        (shapes | {EXPERTS: (4, 8, 4)}, f"{EXPERTS} has 12 values, the model's 4 x 4"),
        ({NAME: (8, 4)}, f"has {EXPERTS}, which the model has not"),
    ):
        with refusal(OptionError, "of another model", told):
            importance.check(other)
    with refusal(OptionError, "none of the model's tensors"):
        replace(importance, entries={"output.weight": importance.entries[NAME]}).check(shapes)


def test_an_embedding_of_another_width_is_left_alone(importance: Importance) -> None:
    tied = replace(importance, entries={"token_embd.weight": importance.entries[NAME]})
    assert tied.for_tensor("token_embd.weight", (100, 8)) is None


@pytest.mark.parametrize(
    ("values", "counts", "told"),
    [
        ([1.0, np.nan], [1], "1 of its values are NaN or infinite"),
        ([np.inf, np.inf], [1], "2 of its values are NaN or infinite"),
        ([-1.0, 1.0], [1], "1 of its values are negative"),
        ([0.0, 0.0], [1], "the values are all zero"),
        ([1.0, 1.0], [-5], "counts -5 tokens"),
        ([1.0, 1.0], [1 << 60], "counts"),
        ([1.0, 1.0], [np.nan], "counts are NaN, infinite"),
    ],
)
def test_values_that_nothing_can_be_weighed_by_are_refused(
    values: list[float], counts: list[float], told: str, tmp_path: Path
) -> None:
    path = gguf(tmp_path / "i.gguf", {f"{NAME}.in_sum2": [values], f"{NAME}.counts": [counts]})
    with refusal(ArtifactError, told, path, NAME):
        read_importance(path)


def test_an_expert_without_tokens_may_hold_anything(tmp_path: Path) -> None:
    tensors = {f"{NAME}.in_sum2": [[np.nan, -1.0], [1.0, 1.0]], f"{NAME}.counts": [[0.0], [2.0]]}
    assert read_importance(gguf(tmp_path / "i.gguf", tensors)).weights(NAME).tolist() == [[1, 1], [0.5, 0.5]]


def gguf(path: Path, tensors: dict[str, Any], form: str = "f32", **fields: Value | None) -> Path:
    """An importance matrix of these tensors, right but for ``fields`` (of None: without the field)."""
    known = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(ValueType.STRING, ["a.txt"]),
        "imatrix.chunk_count": u32(1),
        "imatrix.chunk_size": u32(512),
    }
    known |= {key.replace("__", "."): value for key, value in fields.items()}  # type: ignore[misc] # None goes below
    dtype = {"f32": np.float32, "f16": np.float16}[form]
    arrays: dict[str, NDArray[Any]] = {name: np.array(values, dtype) for name, values in tensors.items()}
    table = [(name, values.shape, FORMATS[form]) for name, values in arrays.items()]
    header, offsets = encode_header({key: value for key, value in known.items() if value is not None}, table)
    data = bytearray(header)
    for values, offset in zip(arrays.values(), offsets, strict=True):
        data += bytes(offset - len(data)) + values.tobytes()
    path.write_bytes(data)
    return path


def test_other_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    path, right = tmp_path / "i.gguf", {f"{NAME}.in_sum2": [[1.0, 2.0]], f"{NAME}.counts": [[1.0]]}
    assert len(read_importance(gguf(path, right)).entries) == 1
    for file, told in (
        (lambda: gguf(path, right, general__type=string("model")), "is a model, no importance matrix"),
        (lambda: gguf(path, right, general__type=None), "is a model, no importance matrix"),
        (lambda: gguf(path, right, imatrix__chunk_size=None), "has no imatrix.chunk_size"),
        (lambda: gguf(path, right, imatrix__datasets=string("a.txt")), "imatrix.datasets is 'a.txt'"),
        (lambda: gguf(path, right, imatrix__chunk_count=string("1")), "imatrix.chunk_count is '1'"),
        (lambda: gguf(path, right, "f16"), "is f16, expected f32"),
        (lambda: gguf(path, {f"{NAME}.in_sum2": [[1.0]]}), "needs both .in_sum2 and .counts"),
        (lambda: gguf(path, {f"{NAME}.counts": [[1.0]]}), "needs both .in_sum2 and .counts"),
        (lambda: gguf(path, {**right, f"{NAME}.counts": [[1.0], [1.0], [1.0]]}), "has 2 sums for 3 experts"),
        (lambda: gguf(path, {}), "has no tensor's values"),
    ):
        file()
        with refusal(ArtifactError, "calibrate again|download", path, told):
            read_importance(path)


@pytest.mark.parametrize("name", ["dense.gguf", "dense.dat", "mixture.dat"])
def test_a_file_that_is_cut_short_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    whole = (imatrix_files.FOLDER / name).read_bytes()
    path = tmp_path / name
    # Its last bytes may be padding, or the number of chunks, which is optional in the older form.
    for length in np.linspace(0, len(whole) - 64, 40).astype(int).tolist():
        path.write_bytes(whole[:length])
        with refusal(ArtifactError, "calibrate again|download", path):
            read_importance(path)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "ends within the number of its tensors"),
        (struct.pack("<i", -1), "is neither GGUF nor an older .dat"),
        (struct.pack("<i", 1 << 30) + bytes(100), "is neither GGUF nor an older .dat"),
        (b"%PDF-1.7 and so on, some hundreds of bytes of it" * 9, "is neither GGUF nor an older .dat"),
        (struct.pack("<ii", 1, -4) + bytes(60), "ends within the name of tensor 1"),
        (struct.pack("<ii", 1, 0) + bytes(60), "tensor 1 has no name"),
        (struct.pack("<ii1sii", 1, 1, b"x", 1, 1 << 29) + bytes(60), "ends within x"),
        (struct.pack("<ii1sii", 1, 1, b"x", 1, -2) + bytes(60), "x: has -2 values"),
        (struct.pack("<ii1siif", 1, 1, b"x", 1, 1, 1.0) + struct.pack("<ii", 1, 0) + b"more", "has 4 bytes after"),
        (struct.pack("<i", 2) + struct.pack("<i1siif", 1, b"x", 1, 1, 1.0) * 2, "the name of another"),
    ],
)
def test_an_older_file_that_is_none_is_refused(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "i.dat").write_bytes(data)
    with refusal(ArtifactError, told, tmp_path / "i.dat"):
        read_importance(tmp_path / "i.dat")


def test_an_older_file_may_end_with_its_tensors_and_count_no_chunks(tmp_path: Path) -> None:
    """As llama-quantize takes it: sums over no chunk are the means themselves."""
    path = tmp_path / "i.dat"
    path.write_bytes(struct.pack("<i", 1) + struct.pack("<i1siiff", 1, b"x", 0, 2, 1.0, 3.0))
    read = read_importance(path)
    assert (read.n_chunks, read.datasets) == (0, ())
    assert read.weights("x").tolist() == [[1.0, 3.0]]


def test_what_can_not_be_read_or_written_is_told(importance: Importance, tmp_path: Path) -> None:
    with refusal(ArtifactError, "cannot be read", tmp_path / "none.gguf"):
        read_importance(tmp_path / "none.gguf")
    with refusal(ArtifactError, "cannot be read", tmp_path):
        read_importance(tmp_path)
    with refusal(OutputError, "cannot be written", tmp_path / "no" / "i.gguf"):
        write_importance(tmp_path / "no" / "i.gguf", importance)
    with refusal(ArtifactError, "all zero"):
        write_importance(tmp_path / "i.gguf", replace(importance, entries={NAME: sums([0, 0], counts=[1])}))
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_until_now_is_read_by_the_same_measuring_alone(tmp_path: Path) -> None:
    entries = {NAME: (np.array([[1 / 3, 1e30]]), np.array([7])), EXPERTS: (np.ones((2, 4)) / 7, np.array([0, 9]))}
    partial = Partial(tmp_path / "i.gguf", "key")
    assert partial.read() == (0, {})
    partial.write(12, entries)
    assert [path.name for path in tmp_path.iterdir()] == [".i.gguf.partial"]
    done, read = Partial(tmp_path / "i.gguf", "key").read()
    assert done == 12
    for name, (values, counts) in entries.items():
        assert np.array_equal(read[name][0], values)
        assert np.array_equal(read[name][1], counts)
    assert Partial(tmp_path / "i.gguf", "another").read() == (0, {})
    whole = partial.path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        partial.path.write_bytes(whole[:length])
        assert partial.read() == (0, {})
    partial.remove()
    assert list(tmp_path.iterdir()) == []
    with refusal(OutputError, "can't be kept", tmp_path / "no"):
        Partial(tmp_path / "no" / "i.gguf", "key").write(1, entries)


def test_a_header_says_what_it_is_of(importance: Importance, tmp_path: Path) -> None:
    """The keys that llama.cpp reads, in its order, and then ours."""
    write_importance(tmp_path / "i.gguf", importance)
    header = read_header(tmp_path / "i.gguf")
    known = ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert list(header.fields) == [*known, MODEL]
    assert header.fields["imatrix.chunk_count"] == u32(3)
    assert [tensor.shape for tensor in header.tensors] == [(4,), (1,), (3, 4), (3, 1)]
