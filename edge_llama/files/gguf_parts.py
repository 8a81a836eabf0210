"""A GGUF model in several files, by llama.cpp's naming: NAME-00001-of-00003.gguf and so on. No native code."""

import re
from pathlib import Path

from edge_llama.errors import ArtifactError
from edge_llama.files.gguf import Header, read_header

LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
"""The end of a later part's name: a model is opened by its first."""
_NOT_TOGETHER = "the files don't belong together: download or convert all of them again"


def parts(path: Path) -> list[Path]:
    """The files of the model whose first, or only, file is ``path``: NAME-00001-of-00003.gguf and so on."""
    match = re.fullmatch(r"(.+)-00001-of-(\d{5})\.gguf", path.name)
    if not match:
        return [path]
    return [path.with_name(f"{match[1]}-{part:05}-of-{match[2]}.gguf") for part in range(1, int(match[2]) + 1)]


def read_parts(path: Path) -> tuple[Header, ...]:
    """The headers of all files of the model, by llama.cpp's naming: NAME-00001-of-00003.gguf."""
    first = read_header(path)
    count = first.get("split.count", int, 0)
    if count <= 1:
        return (first,)
    number = first.get("split.no", int, 0)
    ending = f"-{number + 1:05}-of-{count:05}.gguf"
    if not path.name.endswith(ending):
        raise ArtifactError(
            f"{path}: part {number + 1} of {count} by its header", remedy=f"its name must end in {ending}"
        )
    first_path = path.with_name(f"{path.name.removesuffix(ending)}-00001-of-{count:05}.gguf")
    if number:
        raise ArtifactError(f"{path}: this is part {number + 1} of {count}", remedy=f"open the first: {first_path}")
    paths = parts(path)
    if missing := [part for part in paths if not part.is_file()]:
        raise ArtifactError(f"{missing[0]}: this part is missing", remedy="download all parts, or convert again")
    headers = (first, *map(read_header, paths[1:]))
    _check_parts(headers, count)
    return headers


def _check_parts(headers: tuple[Header, ...], count: int) -> None:
    for number, header in enumerate(headers):
        if (header.get("split.no", int, -1), header.get("split.count", int, 0)) != (number, count):
            raise ArtifactError(f"{header.path}: is no part {number + 1} of {count}", remedy=_NOT_TOGETHER)
    total = headers[0].get("split.tensors.count", int, 0)
    names = [tensor.name for header in headers for tensor in header.tensors]
    if total != len(names) or len(set(names)) != len(names):
        raise ArtifactError(
            f"{headers[0].path}: {len(names):,} tensors in {count} parts, {total:,} announced", remedy=_NOT_TOGETHER
        )
