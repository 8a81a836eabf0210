"""GGUF headers: equal to what gguf-py reads and writes; every malformed one is a typed error."""

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from refusals import refusal

import edge_llama
from edge_llama.errors import ArtifactError
from edge_llama.files.formats import BY_GGML_ID, F32, FORMATS
from edge_llama.files.gguf import ValueType, array, boolean, encode_header, f32, read_header, string, u32
from quant.reference import ggml

FIELDS = {
    "general.architecture": string("llama"),
    "a.number": u32(7),
    "a.real": f32(0.5),
    "a.flag": boolean(True),
    "a.text": string("naïve 🦙"),
    "some.strings": array(ValueType.STRING, ["a", "", "ß"]),
    "some.numbers": array(ValueType.INT32, [1, -2, 3]),
}
TENSORS = [("first.weight", (3, 32), FORMATS["q8_0"]), ("second.weight", (5,), F32)]


def file_bytes(fields: dict = FIELDS, tensors: list = TENSORS) -> bytes:
    header, offsets = encode_header(fields, tensors)
    data = bytearray(header)
    for (_, shape, format_), offset in zip(tensors, offsets, strict=True):
        data += bytes(offset - len(data))
        data += bytes(int(np.prod(shape[:-1])) * format_.row_bytes(shape[-1]))
    return bytes(data)


def test_what_we_write_is_what_gguf_py_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file_bytes())
    read = reference.GGUFReader(path)
    assert [field.contents() for key, field in read.fields.items() if not key.startswith("GGUF.")] == [
        list(value.data) if value.item is not None else value.data for value in FIELDS.values()
    ]
    assert [(tensor.name, tuple(tensor.shape)[::-1], tensor.tensor_type.name) for tensor in read.tensors] == [
        ("first.weight", (3, 32), "Q8_0"),
        ("second.weight", (5,), "F32"),
    ]


def test_reading_the_built_in_model_agrees_with_gguf_py(packaged: Path) -> None:
    ours, theirs = read_header(packaged), reference.GGUFReader(packaged)
    assert set(ours.fields) == {key for key in theirs.fields if not key.startswith("GGUF.")}
    for key, value in ours.fields.items():
        expected = theirs.fields[key].contents()
        assert (list(value.data) if value.item is not None else value.data) == expected, key
    for ours_, theirs_ in zip(ours.tensors, theirs.tensors, strict=True):
        assert (ours_.name, ours_.shape, ours_.offset, ours_.nbytes) == (
            theirs_.name,
            tuple(theirs_.shape.tolist())[::-1],
            theirs_.data_offset,
            theirs_.n_bytes,
        )


def test_a_header_written_again_is_the_same(packaged: Path) -> None:
    header = read_header(packaged)
    encoded, _ = encode_header(header.fields, [(t.name, t.shape, t.format) for t in header.tensors])
    assert packaged.read_bytes().startswith(encoded)


def test_formats_are_ggmls() -> None:
    """Names, ids and sizes of every format, asked of the installed libggml."""
    library = ggml._library()
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_type_name.restype = ctypes.c_char_p
    for ggml_id in range(43):
        block_size = library.ggml_blck_size(ggml_id)
        if block_size:  # ids of formats that ggml has removed have none
            ours = BY_GGML_ID[ggml_id]
            assert (ours.block_size, ours.block_bytes) == (block_size, library.ggml_type_size(ggml_id))
            assert ours.name == library.ggml_type_name(ggml_id).decode().lower()


def patched(at: int, code: str, value: int) -> Callable[[bytes], bytes]:
    def patch(data: bytes) -> bytes:
        size = struct.calcsize("<" + code)
        return data[:at] + struct.pack("<" + code, value) + data[at + size :]

    return patch


def info_at(field: str) -> int:
    """Where in the file the first tensor's dimension count, size, format or offset lies, or the second's offset."""
    if field == "second offset":
        return file_bytes().index(b"second.weight") + len(b"second.weight") + 16
    start = file_bytes().index(b"first.weight") + len(b"first.weight")
    return start + {"n_dims": 0, "size": 4, "format": 20, "offset": 24}[field]


def with_field(key: str, value: object) -> Callable[[bytes], bytes]:
    return lambda _data: file_bytes(FIELDS | {key: value})


BAD = {
    "empty": (lambda data: b"", "the file is empty"),
    "wrong magic": (lambda data: b"GGML" + data[4:], "not a GGUF file"),
    "git lfs pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "html": (lambda data: b"<!DOCTYPE html><html></html>", "HTML page"),
    "version 1": (patched(4, "I", 1), "version 1 is not supported"),
    "version 4": (patched(4, "I", 4), "version 4 is not supported"),
    "big-endian": (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian"),
    "tensor count past the end": (patched(8, "Q", 2**60), "announces"),
    "field count past the end": (patched(16, "Q", 2**60), "announces"),
    "cut in the metadata": (lambda data: data[:100], "can hold"),
    "cut in the tensor table": (lambda data: data[: info_at("offset")], "cut short"),
    "cut in the data": (lambda data: data[:-4], "cut short"),
    "string past the end": (patched(24, "Q", 2**62), "announces"),
    "array past the end": (
        lambda data: data.replace(struct.pack("<IIQ", 9, 5, 3), struct.pack("<IIQ", 9, 5, 2**61), 1),
        "announces .* values",
    ),
    "unknown value type": (patched(24 + 8 + 20, "I", 99), "unknown type 99"),
    "array of arrays": (
        lambda data: data.replace(struct.pack("<II", 9, 8), struct.pack("<II", 9, 9), 1),
        "array of arrays",
    ),
    "duplicate key": (lambda data: data.replace(b"a.real", b"a.flag").replace(b"a.flag", b"a.flag"), "appears twice"),
    "zero dimensions": (patched(info_at("n_dims"), "I", 0), "0 dimensions"),
    "five dimensions": (patched(info_at("n_dims"), "I", 5), "5 dimensions"),
    "a size of zero": (patched(info_at("size"), "Q", 0), "impossible shape"),
    "sizes that overflow": (patched(info_at("size") + 8, "Q", 2**63), "impossible shape"),
    "rows of no whole blocks": (patched(info_at("size"), "Q", 33), "no multiple"),
    "unknown format": (patched(info_at("format"), "I", 777), "unknown number format 777"),
    "offset not aligned": (patched(info_at("offset"), "Q", 8), "no multiple of the alignment"),
    "offset past the end": (patched(info_at("offset"), "Q", 2**40), "cut short"),
    "tensors that overlap": (patched(info_at("second offset"), "Q", 96), "overlaps"),
    "alignment 0": (with_field("general.alignment", u32(0)), "no power of two"),
    "alignment 3": (with_field("general.alignment", u32(3)), "no power of two"),
    "duplicate tensor": (lambda data: file_bytes(tensors=[TENSORS[0], TENSORS[0]]), "appears twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_header_is_a_typed_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    spoil, expected = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(spoil(file_bytes()))
    with refusal(ArtifactError, expected, path):
        edge_llama.open(path)


def test_a_header_longer_than_the_first_read_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    words = [f"word {number}" * 40 for number in range(60_000)]
    path.write_bytes(file_bytes(FIELDS | {"many.words": array(ValueType.STRING, words)}))
    header = read_header(path)
    assert header.fields["many.words"].data == words
    assert header.data_offset > 1 << 24
