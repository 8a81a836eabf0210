"""The certificate: its JSON, where it stands in files, what is refused, and which numbers pass for the same."""

import hashlib
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refusal

from edge_llama.errors import ArtifactError, NotVerifiableError, OutputError
from edge_llama.fidelity.certificate import Certificate, Numbers, Part, decode
from edge_llama.fidelity.certified import put_at, read_certificate, subject_at
from edge_llama.fidelity.tolerances import differences
from edge_llama.files import integrity, manifest
from edge_llama.files.formats import FORMATS
from edge_llama.files.gguf import encode_header, read_header, string

NUMBERS = Numbers(512, 4088, 0.0312, 0.011, 0.3, 2.5, 0.93, 12.1, 11.9, 1.0168)
SHA = hashlib.sha256(b"weights").hexdigest()
CERTIFICATE = Certificate(
    subject="0" * 64,
    source="Llama-3.2-1B",
    source_sha256=SHA,
    recipe="q4_k_m: 3 q4_k",
    calibration=(SHA,),
    evaluation=SHA,
    engine="llama.cpp",
    numbers=NUMBERS,
    engine_kl=0.001,
    layers=(Part("layer 0", 0.05, 0.05), Part("layer 1", 0.06, 0.0599)),
    components=(Part("embedding", 0.02, 0.02), Part("RoPE", 0.0, 0.0)),
    vision=(0.001, 0.002),
    versions={"edge-llama": "1.0", "numpy": "2"},
)
MOST = integrity.CERTIFICATE_BYTES


def gguf(path: Path, name: str = "small", content: int = 3) -> Path:
    """A file with hashes: two tensors of zeros but for one byte."""
    tensors = [("a.weight", (4, 32), FORMATS["f32"]), ("b.weight", (32,), FORMATS["f32"])]
    data = [np.full(4 * 32 * 4, content, np.uint8).tobytes(), bytes(32 * 4)]
    header = integrity.header_with_room({"general.name": string(name)}, tensors, 32)
    sealed = integrity.seal(header, [hashlib.sha256(each).digest() for each in data])
    path.write_bytes(sealed + b"".join(data))
    return path


def certified(path: Path) -> Certificate:
    found = replace(CERTIFICATE, subject=subject_at(path))
    put_at(path, found)
    return found


def test_what_is_encoded_is_decoded() -> None:
    assert decode("here", CERTIFICATE.encode(MOST)) == CERTIFICATE


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda content: content.update(schema="another"), "schema is 'another'"),
        (lambda content: content.update(version=2), "version is 2, .*newer: update edge-llama"),
        (lambda content: content.update(version=0), "version is 0"),
        (lambda content: content.update(signed="by me"), "'signed' is no field"),
        (lambda content: content.pop("numbers"), "numbers is missing"),
        (lambda content: content["numbers"].update(kl="0.1"), "numbers.kl is '0.1', expected a number"),
        (lambda content: content["numbers"].update(n_ctx=0), "n_ctx is 0"),
        (lambda content: content["numbers"].update(luck=1), "'luck' is no field"),
        (lambda content: content["source"].update(weights_sha256="f00"), "64 hexadecimal digits"),
        (lambda content: content["layers"].append(3), r"layers\[2\] is 3"),
        (lambda content: content["layers"][0].update(error=None), r"layers\[0\].error is None"),
        (lambda content: content["versions"].update(numpy=2), "versions.numpy is 2"),
        (lambda content: content.update(calibration=[1]), "calibration has 1"),
        (lambda content: content.update(vision=[0.1, "x"]), "vision.1 is 'x'"),
    ],
)
def test_what_is_none_is_refused_by_its_field(change: Callable[[dict[str, Any]], object], match: str) -> None:
    content = CERTIFICATE.to_json()
    change(content)
    with refusal(ArtifactError, match, "here: certificate"):
        decode("here", json.dumps(content).encode())


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"schema": NaN}', b"\xff", b'{"schema": "a", "schema": "b"}'])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with refusal(ArtifactError, "certificate", "here"):
        decode("here", raw)


def test_one_that_is_too_large_is_refused() -> None:
    layers = tuple(Part(f"layer {number}", 0.1, 0.1) for number in range(3000))
    with refusal(OutputError, r"takes .* bytes, there is room for 65,536"):
        replace(CERTIFICATE, layers=layers).encode(MOST)


def test_numbers_that_are_none_are_refused() -> None:
    with refusal(OutputError, "a certificate of Llama-3.2-1B"):
        replace(CERTIFICATE, numbers=replace(NUMBERS, kl=float("nan"))).encode(MOST)


def test_a_file_holds_it_and_verifies(tmp_path: Path) -> None:
    path = gguf(tmp_path / "model.gguf")
    before, size = subject_at(path), path.stat().st_size
    assert read_certificate(path) is None
    found = certified(path)
    assert read_certificate(path) == found
    assert (subject_at(path), path.stat().st_size) == (before, size)
    integrity.verify(read_header(path))
    put_at(path, replace(found, source="again"))  # another takes its place whole
    integrity.verify(read_header(path))
    certificate = read_certificate(path)
    assert certificate is not None
    assert certificate.source == "again"


def test_a_bit_of_it_that_flips_fails(tmp_path: Path) -> None:
    path = gguf(tmp_path / "model.gguf")
    certified(path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b'"kl":0.0312') + 7] ^= 1
    path.write_bytes(raw)
    with refusal(ArtifactError, "its header is not as it was written"):
        integrity.verify(read_header(path))


@pytest.mark.parametrize("other", [{"name": "other"}, {"content": 4}])
def test_that_of_another_file_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    first, second = gguf(tmp_path / "one.gguf"), gguf(tmp_path / "two.gguf", **other)
    put_at(second, certified(first))
    integrity.verify(read_header(second))
    with refusal(ArtifactError, "its certificate is of another file", second):
        read_certificate(second)


def test_a_file_of_another_program_has_no_room(tmp_path: Path) -> None:
    path = tmp_path / "plain.gguf"
    path.write_bytes(encode_header({"general.name": string("plain")}, [])[0])
    assert read_certificate(path) is None
    with pytest.raises(NotVerifiableError, match="has no room for a certificate"):
        put_at(path, CERTIFICATE)


def test_a_bundle_holds_it_in_its_manifest(tmp_path: Path) -> None:
    text = gguf(tmp_path / "text.gguf")
    stored = manifest.StoredFile(text.stat().st_size, hashlib.sha256(text.read_bytes()).hexdigest())
    of = manifest.Manifest("small", "edge-llama", {"text.gguf": stored}, manifest.Tower("llama.cpp", "text.gguf"))
    (tmp_path / manifest.NAME).write_bytes(of.encode())
    assert read_certificate(tmp_path) is None
    found = certified(tmp_path)
    assert read_certificate(tmp_path) == found
    manifest.verify(tmp_path)
    raw = (tmp_path / manifest.NAME).read_bytes()
    (tmp_path / manifest.NAME).write_bytes(raw.replace(b'"kl": 0.0312', b'"kl": 0.0012'))
    with refusal(ArtifactError, "is not as it was written"):
        manifest.verify(tmp_path)
    changed = replace(of, files={"text.gguf": stored, "LICENSE": manifest.StoredFile(0, hashlib.sha256().hexdigest())})
    (tmp_path / "LICENSE").touch()
    (tmp_path / manifest.NAME).write_bytes(replace(changed, certificate=found.to_json()).encode())
    with refusal(ArtifactError, "its certificate is of another file"):
        read_certificate(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "is_same"),
    [
        ("kl", 0.0325, True), ("kl", 0.02, False), ("kl", 0.045, False),
        ("kl_max", 2.9, True), ("kl_max", 0.3, False),
        ("top1", 0.938, True), ("top1", 0.99, False),
        ("ratio", 1.019, True), ("ratio", 1.0001, False),
        ("n_tokens", 4089, False),
    ],
)  # fmt: skip
def test_numbers_may_differ_as_processors_do(field: str, value: float, is_same: bool) -> None:
    claimed = replace(CERTIFICATE, numbers=replace(NUMBERS, **{field: value}))
    found = list(differences(claimed, CERTIFICATE))
    assert [each.field for each in found] == ([] if is_same else [f"numbers.{field}"])
    for each in found:
        assert f"{value:.6g}" in str(each)
        assert f"{getattr(NUMBERS, field):.6g}" in str(each)


def test_parts_and_texts_are_compared_too() -> None:
    layers = (replace(CERTIFICATE.layers[0], error=0.01), CERTIFICATE.layers[1])
    assert [each.field for each in differences(replace(CERTIFICATE, layers=layers), CERTIFICATE)] == [
        "layers: layer 0: error"
    ]
    assert [each.field for each in differences(replace(CERTIFICATE, layers=()), CERTIFICATE)] == ["layers"]
    assert [each.field for each in differences(replace(CERTIFICATE, engine_kl=None), CERTIFICATE)] == ["engine_kl"]
    assert [each.field for each in differences(replace(CERTIFICATE, vision=(0.001, 0.009)), CERTIFICATE)] == ["vision"]
    for name in ("recipe", "evaluation"):
        changed = replace(CERTIFICATE, **{name: "1" * 64})
        assert [each.field for each in differences(changed, CERTIFICATE)] == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_a_disk_that_refuses_the_write_is_an_error(tmp_path: Path) -> None:
    import resource  # noqa: PLC0415

    path = gguf(tmp_path / "model.gguf")
    found = replace(CERTIFICATE, subject=subject_at(path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with refusal(OutputError, "cannot be written: File too large", path):
            put_at(path, found)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
