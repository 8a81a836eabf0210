"""``SHA256SUMS``: the hashes of a folder's files as ``sha256sum`` writes them, for folders that other programs read.

So ``sha256sum -c SHA256SUMS`` checks the same as ``edge-llama verify``, on a machine that has no edge-llama. Every file
that could change what the model says must be listed: a file that was added is found too.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from edge_llama.errors import ArtifactError
from edge_llama.files.identity import sha256_of
from edge_llama.files.json_fields import read_bytes
from edge_llama.files.manifest import StoredFile

NAME = "SHA256SUMS"
_MAX_BYTES = 1 << 20
_AGAIN = "the folder is damaged: copy the whole folder again, or convert again"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\\\x00-\x1f]+)")
_OF_A_MODEL = ("*.safetensors", "*.json", "*.jinja", "*/*.jinja", "*.model")


def encode(files: Mapping[str, StoredFile]) -> bytes:
    """The file's content. Its length does not depend on the hashes."""
    return "".join(f"{file.sha256}  {name}\n" for name, file in sorted(files.items())).encode()


def read(folder: Path) -> dict[str, str]:
    """The hash of each file by its name. ArtifactError names what is malformed, missing, or not listed."""
    path = folder / NAME
    lines = read_bytes(path, _MAX_BYTES, _AGAIN).decode("utf-8", "replace").split("\n")
    found: dict[str, str] = {}
    for number, line in enumerate(lines[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found or set(match[2].split("/")) & {"", ".", ".."}:
            raise ArtifactError(
                f"{path}: line {number} is {line!r:.200}, expected a hash and a file's name", remedy=_AGAIN
            )
        found[match[2]] = match[1]
    if lines[-1] or not found:
        raise ArtifactError(f"{path}: is cut short", remedy=_AGAIN)
    for name in found:
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name}: is missing, {NAME} lists it", remedy=_AGAIN)
    for file in sorted(file for pattern in _OF_A_MODEL for file in folder.glob(pattern)):
        if file.relative_to(folder).as_posix() not in found:
            raise ArtifactError(
                f"{file}: is not listed in {NAME}: it was not there when the folder was written",
                remedy="remove it, or convert again",
            )
    return found


def verify(folder: Path, on_progress: Callable[[int], None] | None = None) -> int:
    """Check every bit of the files that are listed, and return their number; ``on_progress``: bytes just checked.

    Raises ArtifactError naming the file that is damaged.
    """
    found = read(folder)
    for name, sha256 in found.items():
        if sha256_of(folder / name, on_progress) != sha256:
            raise ArtifactError(f"{folder / name}: is not as it was written", remedy=_AGAIN)
    return len(found)
