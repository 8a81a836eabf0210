"""Formats by tensor, in files that llama-quantize takes by ``--tensor-type-file`` too: many ``pattern=format``.

A pattern is a regular expression of C++'s ``std::regex`` (ECMAScript), searched for in tensors' names, and the first
that is found wins; it is put in lower case first, as there (``tools/quantize/quantize.cpp``, ggml 0.25). What Python
would read in another way is refused.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from edge_llama.errors import OptionError
from edge_llama.files.formats import FORMATS, Format
from edge_llama.host.regular_files import opened

_FLAG = "--tensor-type-file"
_MAX_BYTES = 1 << 22
_FOREIGN = (
    (r"\(\?(?![:=!])", "a group that begins with (? and neither :, = nor !"),
    (r"\[\^?\]", "an empty class"),
    (r"\[[^\]]*\[[:.=]", "a POSIX class"),
    (r"\\[a-z](?<![dswbnrtfv])", "an escaped letter"),
    (r"\{(?!\d+(,\d*)?\})", "a brace that counts nothing"),
    (r"(?:[*+?]|\})\+", "a possessive quantifier"),
)
"""What std::regex and Python read differently, or one of them not at all."""
_SPECIAL = re.compile(r"[\\^$.|?*+()\[\]{}]")
_NAME = re.compile(r"[^\sA-Z=]+", re.ASCII)


class TensorType(NamedTuple):
    """Tensors in whose names ``pattern`` is found shall be stored in ``format``."""

    pattern: re.Pattern[str]
    format: Format


def read_tensor_types(path: Path, formats: Collection[str]) -> tuple[TensorType, ...]:
    """The lines of the file ``path``, in order; ``formats`` are the names of those that may be asked for.

    OptionError names what is malformed, not known, or would be read otherwise by llama-quantize.
    """
    try:
        with opened(path) as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise OptionError(f"{_FLAG} {path}: cannot be read: {error.strerror}", remedy="give another file") from error
    if len(raw) > _MAX_BYTES:
        raise OptionError(f"{_FLAG} {path}: has more than {_MAX_BYTES:,} bytes", remedy="give another file")
    try:
        items = raw.decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{_FLAG} {path}: is no text in UTF-8 at byte {error.start:,}", remedy="correct it"
        ) from error
    if not items:
        raise OptionError(f"{_FLAG} {path}: names no tensor", remedy="leave it out")
    return tuple(_tensor_type(path, item, formats) for item in items)


def _tensor_type(path: Path, item: str, formats: Collection[str]) -> TensorType:
    said = f"{_FLAG} {path}: {item!r:.200}"
    pattern, _, name = item.partition("=")
    if not pattern or not name:
        raise OptionError(f"{said}: expected PATTERN=FORMAT", remedy=r"for example ^blk\.0\.attn_v\.weight$=q8_0")
    if name.lower() not in formats:
        raise OptionError(f"{said}: no such format", remedy=f"known: {', '.join(formats)}")
    pattern = pattern.lower()
    for foreign, what in _FOREIGN:
        if re.search(foreign, pattern):
            raise OptionError(f"{said}: has {what}, which programs read differently", remedy="write it plainly")
    try:
        return TensorType(re.compile(pattern, re.ASCII), FORMATS[name.lower()])
    except (re.error, RecursionError, OverflowError) as error:
        raise OptionError(f"{said}: is no regular expression: {error}", remedy="correct it") from error


def asked_for(name: str, types: Sequence[TensorType]) -> Format | None:
    """The format that is asked for the tensor ``name``; None if none is."""
    return next((format_ for pattern, format_ in types if pattern.search(name)), None)


def unmatched(types: Sequence[TensorType], names: Collection[str]) -> list[str]:
    """Patterns that are in none of the names."""
    return [pattern.pattern for pattern, _ in types if not any(map(pattern.search, names))]


def encoded(choices: Iterable[tuple[str, Format]]) -> str:
    """A file that gives each tensor, by its whole name, its format. OptionError for a name that has no place in one."""
    lines = []
    for name, format_ in choices:
        if not _NAME.fullmatch(name):
            raise OptionError(
                f"--write-tensor-types: a tensor is called {name!r:.200}, which llama-quantize could not be told",
                remedy="leave it out",
            )
        lines.append(f"^{_SPECIAL.sub(lambda found: chr(92) + found[0], name)}$={format_}\n")
    return "".join(lines)
