"""Every bit of a file counts."""

import random
from pathlib import Path

import pytest

import converters
from edge_llama import EdgeLlamaError, NotVerifiableError
from edge_llama.backends.registry import open_artifact
from edge_llama.files.gguf import read_header
from edge_llama.files.integrity import CERTIFICATE, ROOT, TENSORS, verify


@pytest.fixture(scope="module")
def written(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "model.gguf"
    converters.convert(llama3, path)
    return path


def test_what_was_written_is_intact(written: Path) -> None:
    checked: list[int] = []
    artifact = open_artifact(written)
    verify(artifact.header, checked.append)
    assert sum(checked) == artifact.weight_bytes


def test_every_flipped_bit_is_caught(written: Path, tmp_path: Path, seed: int) -> None:
    """A thousand, anywhere: header, hashes, names, weights, padding."""
    rng = random.Random(seed)
    data = bytearray(written.read_bytes())
    header = read_header(written)
    places = [rng.randrange(len(data)) for _ in range(800)] + [rng.randrange(header.data_offset) for _ in range(200)]
    damaged = tmp_path / "damaged.gguf"
    for place in places:
        bit = 1 << rng.randrange(8)
        data[place] ^= bit
        damaged.write_bytes(data)
        with pytest.raises(EdgeLlamaError) as caught:
            verify(open_artifact(damaged).header)
        assert str(damaged) in str(caught.value), f"byte {place}"
        data[place] ^= bit


@pytest.mark.parametrize("change", [b"\0", bytes(64)])
def test_what_is_appended_is_caught(written: Path, tmp_path: Path, change: bytes) -> None:
    (tmp_path / "longer.gguf").write_bytes(written.read_bytes() + change)
    with pytest.raises(EdgeLlamaError, match="its length"):
        verify(open_artifact(tmp_path / "longer.gguf").header)


def test_a_file_of_other_origin_is_not_verifiable(packaged: Path) -> None:
    with pytest.raises(NotVerifiableError, match="its structure is sound"):
        verify(open_artifact(packaged).header)


def test_the_header_has_the_hashes_and_room_for_a_certificate(written: Path) -> None:
    header = read_header(written)
    assert len(header.get(ROOT, str, "")) == 64
    assert len(header.fields[TENSORS].data) == 32 * len(header.tensors)
    assert len(header.fields[CERTIFICATE].data) == 65536
