"""SHA256SUMS: what ``--to safetensors`` leaves beside the weights, so that every bit can be checked."""

import shutil
import subprocess
from pathlib import Path

import pytest
from refusals import refusal

import converters
from edge_llama import ArtifactError
from edge_llama.files import checksums


@pytest.fixture(scope="module")
def folder(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sums") / "folder"
    converters.convert(llama3, path, to="safetensors")
    return path


def test_every_file_is_listed_as_sha256sum_reads_it(folder: Path) -> None:
    listed = set(checksums.read(folder))
    assert listed == {path.name for path in folder.iterdir()} - {checksums.NAME}
    assert "model.safetensors" in listed
    done = subprocess.run(["sha256sum", "--strict", "-c", checksums.NAME], cwd=folder, check=True, capture_output=True)
    assert done.stdout.count(b": OK") == checksums.verify(folder) == len(listed)


def test_any_bit_that_flipped_is_found(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    for path in copied.iterdir():
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes((whole[at] ^ 0x20,)) + whole[at + 1 :])
            with refusal(ArtifactError, "as it was written|expected a hash|cut short|is missing|cannot be", copied):
                checksums.verify(copied)
        path.write_bytes(whole)
    assert checksums.verify(copied) > 3


def test_what_is_missing_added_or_cut_is_named(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    (copied / "chat_template.jinja").write_text("{{ messages }}")
    with refusal(ArtifactError, r"chat_template\.jinja: is not listed in SHA256SUMS"):
        checksums.verify(copied)
    (copied / "chat_template.jinja").unlink()
    sums = copied / checksums.NAME
    lines = sums.read_bytes()
    for content, problem in (
        (lines[:-1], "is cut short"),
        (b"", "is cut short"),
        (lines + lines.splitlines(keepends=True)[0], "expected a hash and a file's name"),
        (lines + b"0" * 64 + b"  ../outside\n", "expected a hash and a file's name"),
        (lines + b"0" * 64 + b"  /etc/passwd\n", "expected a hash and a file's name"),
        (lines.split(b"\n", 1)[1], "is not listed"),
    ):
        sums.write_bytes(content)
        with refusal(ArtifactError, problem, copied):
            checksums.verify(copied)
    sums.write_bytes(lines)
    (copied / "config.json").unlink()
    with refusal(ArtifactError, r"config\.json: is missing"):
        checksums.verify(copied)
