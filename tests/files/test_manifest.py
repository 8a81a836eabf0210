"""``edge-llama.json``: what is written is read back, and whatever a manifest of other origin says is checked."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal

from edge_llama.backends.towers import locate, read_bundle
from edge_llama.errors import ArtifactError, NotVerifiableError
from edge_llama.files.manifest import NAME, Manifest, StoredFile, Tower, read_manifest, verify
from edge_llama.files.vision_spec import VisionSpec

Content = dict[str, Any]
SPEC = VisionSpec(tile=336, max_tiles=16, tokens_per_tile=144, n_embd=5120, mean=(0.48, 0.5, 0.5), std=(0.2, 0.3, 0.4))


def content(folder: Path) -> Content:
    return dict(json.loads((folder / NAME).read_text("utf-8")))


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "vision").mkdir()
    data = {"text.gguf": b"text", "vision/model.onnx": b"", "vision/model.onnx.data": b"123", "LICENSE": b"mine"}
    for name, stored in data.items():
        (tmp_path / name).write_bytes(stored)
    written = Manifest(
        name="Llama 4 Späher 🦙",
        writer="edge-llama 1.2",
        files={name: StoredFile(len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in data.items()},
        text=Tower("llama.cpp", "text.gguf"),
        vision=Tower("onnxruntime", "vision/model.onnx", "f16"),
        images=SPEC,
        generation={"temperature": 0.6, "eos_token_id": [1, 2], "nested": {"a": None}},
    )
    (tmp_path / NAME).write_bytes(written.encode())
    assert read_manifest(tmp_path) == verify(tmp_path) == written


def test_its_length_is_known_before_the_hashes() -> None:
    first, second = (Manifest("a", "b", {"x": StoredFile(5, digit * 64)}).encode() for digit in "0f")
    assert first != second
    assert len(first) == len(second)


def changed(*keys: str, to: Any) -> Callable[[Content], object]:
    def change(found: Content) -> None:
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = to

    return change


def removed(*keys: str) -> Callable[[Content], object]:
    def remove(found: Content) -> None:
        for key in keys[:-1]:
            found = found[key]
        del found[keys[-1]]

    return remove


def with_file(name: str) -> Callable[[Content], object]:
    return changed("files", name, to={"bytes": 3, "sha256": "0" * 64})


BAD: dict[str, tuple[Callable[[Content], object], str]] = {
    "no schema": (removed("schema"), "schema is missing"),
    "a newer schema": (changed("schema", to=2), "schema is 2.*it is newer: update edge-llama"),
    "schema 0": (changed("schema", to=0), "schema is 0"),
    "a schema that is text": (changed("schema", to="1"), "schema is '1', expected a whole number"),
    "a schema that is true": (changed("schema", to=True), "schema is True"),
    "no name": (removed("name"), "name is missing"),
    "a name that is a number": (changed("name", to=5), "name is 5, expected a text"),
    "a writer that is null": (changed("writer", to=None), "writer is missing"),
    "no files": (removed("files"), "files is missing"),
    "files in a list": (changed("files", to=["text.gguf"]), "files is .*expected an object"),
    "a file without size": (removed("files", "text.gguf", "bytes"), "'text.gguf': bytes is missing"),
    "a size that is text": (changed("files", "text.gguf", "bytes", to="9"), "bytes is '9', expected a whole number"),
    "another size": (changed("files", "text.gguf", "bytes", to=9), r"has [\d,]+ bytes instead of 9"),
    "a negative size": (changed("files", "text.gguf", "bytes", to=-1), "instead of -1"),
    "a short hash": (changed("files", "text.gguf", "sha256", to="ab"), "sha256 is 'ab', expected 64 hexadecimal"),
    "a hash of letters": (changed("files", "text.gguf", "sha256", to="x" * 64), "expected 64 hexadecimal"),
    "a file that is a number": (changed("files", "text.gguf", to=7), "'text.gguf' is 7, expected an object"),
    "a file that is missing": (with_file("b.gguf"), "'b.gguf' is missing"),
    "a folder in place of a file": (with_file("vision"), "'vision' is no file"),
    "a path out of it": (with_file("../text.gguf"), "'../text.gguf' is no path inside the bundle"),
    "a path out of it and back": (with_file("vision/../text.gguf"), "is no path inside the bundle"),
    "an absolute path": (with_file("/etc/hostname"), "is no path inside the bundle"),
    "a path with a dot": (with_file("./text.gguf"), "is no path inside the bundle"),
    "a path with two slashes": (with_file("vision//model.onnx"), "is no path inside the bundle"),
    "a path of Windows": (with_file("vision\\model.onnx"), "is no path inside the bundle"),
    "a drive of Windows": (with_file("C:model.onnx"), "is no path inside the bundle"),
    "an empty path": (with_file(""), "is no path inside the bundle"),
    "a device of Windows": (with_file("vision/aux.onnx"), "is no path inside the bundle"),
    "a name that ends in a point": (with_file("model."), "is no path inside the bundle"),
    "a path with a line break": (with_file("a\nb"), "is no path inside the bundle"),
    "a path with NUL": (with_file("a\0b"), "is no path inside the bundle"),
    "a path that is not Unicode": (with_file("\ud800"), "is no path inside the bundle"),
    "a path that is too long": (with_file("a" * 5000), "cannot be read"),
    "no tower": (lambda found: [found.pop(tower) for tower in ("text", "vision")], "text and vision are missing"),
    "a tower that is a path": (changed("text", to="text.gguf"), "text is 'text.gguf', expected an object"),
    "a tower without engine": (removed("text", "engine"), "text: engine is missing"),
    "a tower for another engine": (changed("text", "engine", to="mlx"), "engine is 'mlx', this version runs it on"),
    "a tower that is not listed": (removed("files", "text.gguf"), "text: file is 'text.gguf', which is none of the"),
    "a tower out of the folder": (changed("vision", "file", to="../model.onnx"), "which is none of the files"),
    "weights that are not listed": (removed("files", "vision/model.onnx.data"), "'vision/model.onnx.data' is missing"),
    "no images": (removed("images"), "images is missing"),
    "images without a field": (removed("images", "tile"), "images: expected the fields"),
    "images of size 0": (changed("images", "tile", to=0), "tile is 0"),
    "a size with a point": (changed("images", "n_embd", to=64.0), "n_embd is 64.0"),
    "a std of 0": (changed("images", "std", to=[0, 1, 1]), "std is"),
    "two means": (changed("images", "mean", to=[0.5, 0.5]), "mean is"),
    "generation that is a list": (changed("generation", to=[]), "generation is .*expected an object"),
}


def test_names_that_differ_by_case_alone_are_refused(copy: Path) -> None:
    found = content(copy)
    found["files"]["TEXT.gguf"] = found["files"]["text.gguf"]
    (copy / "TEXT.gguf").write_bytes((copy / "text.gguf").read_bytes())
    (copy / NAME).write_text(json.dumps(found), "utf-8")
    with refusal(ArtifactError, "and 'text.gguf' are one file on Windows and macOS", copy / NAME):
        read_bundle(copy)


@pytest.mark.parametrize("name", BAD)
def test_what_no_bundle_can_say_is_a_typed_error(name: str, copy: Path) -> None:
    spoil, expected = BAD[name]
    found = content(copy)
    spoil(found)
    (copy / NAME).write_text(json.dumps(found), "utf-8")
    with refusal(ArtifactError, expected, copy / NAME):
        read_bundle(copy)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "not valid JSON"),
        (b"[]", "expected a JSON object, found list"),
        (b'{"schema": 1', "not valid JSON"),
        (b'{"schema": "\xff"}', "not valid JSON.*utf-8"),
        (b'{"schema": 1, "schema": 1}', "'schema' appears twice"),
        (b'{"schema": 1, "files": {"a": {}, "a": {}}}', "'a' appears twice"),
        (b'{"schema": NaN}', "NaN is no number"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"schema": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
        (b'{"schema": 1}' + b" " * (1 << 20), "is larger than the 1,048,576 bytes"),
    ],
)
def test_what_is_no_manifest_is_a_typed_error(raw: bytes, expected: str, copy: Path) -> None:
    (copy / NAME).write_bytes(raw)
    for read in (read_bundle, locate, verify):
        with refusal(ArtifactError, expected, copy / NAME):
            read(copy)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
@pytest.mark.parametrize("name", ["text.gguf", "vision/model.onnx.data", "vision"])
def test_links_stay_inside(name: str, copy: Path, tmp_path: Path) -> None:
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with refusal(ArtifactError, "lies outside the bundle", tmp_path / "elsewhere"):
        read_bundle(copy)
    (copy / name).unlink()
    (tmp_path / "elsewhere").rename(copy / "inside")
    (copy / name).symlink_to(copy / "inside")
    assert read_bundle(copy).vision


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_to_itself_is_a_typed_error(copy: Path) -> None:
    (copy / "text.gguf").unlink()
    (copy / "text.gguf").symlink_to(copy / "text.gguf")
    with refusal(ArtifactError, "'text.gguf' cannot be read", copy):
        read_bundle(copy)


def test_a_bundle_may_be_a_link_itself(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    assert read_bundle(tmp_path / "link").text == tmp_path / "link" / "text.gguf"


def test_a_flipped_bit_is_found_in_every_file(bundle: Path, copy: Path) -> None:
    names = [path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()]
    assert set(names) == {NAME, *read_manifest(bundle).files}
    for name in names:
        raw = (copy / name).read_bytes()
        for at in (0, len(raw) // 3, len(raw) // 2, len(raw) - 2):
            flipped = bytearray(raw)
            flipped[at] ^= 1
            (copy / name).write_bytes(flipped)
            with refusal(ArtifactError, "as it was written|JSON|is ", copy / name):
                verify(copy)
        (copy / name).write_bytes(raw)
    verify(copy)


def test_every_byte_of_the_manifest_counts(copy: Path) -> None:
    raw = (copy / NAME).read_bytes()
    for at in range(len(raw) - 1):
        flipped = bytearray(raw)
        flipped[at] ^= 2
        (copy / NAME).write_bytes(flipped)
        with pytest.raises((ArtifactError, NotVerifiableError)):
            verify(copy)


def test_a_manifest_without_seal_says_that_it_has_none(copy: Path) -> None:
    found = content(copy)
    del found["seal"]
    (copy / NAME).write_text(json.dumps(found), "utf-8")
    assert read_bundle(copy).text
    with pytest.raises(NotVerifiableError, match="no seal"):
        verify(copy)
