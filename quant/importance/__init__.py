"""How much each column of a matrix matters: the mean of its input's squares, as llama.cpp's importance matrices say it.

A file has the sums of squares and the counts of tokens that they are over, for each tensor by its name in GGUF. Two
forms are read and written, both byte for byte as ``llama-imatrix`` does (``tools/imatrix/imatrix.cpp``,
``common/imatrix-loader.cpp``, ggml 0.25): GGUF, and the older ``.dat``.
"""

from pathlib import Path

from edge_llama.errors import UNREADABLE, ArtifactError, OutputError
from edge_llama.files.gguf import MAGIC
from edge_llama.host.atomic import new_file
from edge_llama.host.regular_files import opened
from quant.importance import dat_form, gguf_form
from quant.importance.values import AGAIN, FEW, HASHES, MODEL, OWN_KEYS, TEXTS, Importance, Sums, check_values

__all__ = [
    "AGAIN", "FEW", "HASHES", "MODEL", "OWN_KEYS", "SUFFIXES", "TEXTS", "Importance", "Sums", "read_importance",
    "write_importance",
]  # fmt: skip

SUFFIXES = (".gguf", ".dat")
"""Of the files that can be written: the form follows from them."""


def read_importance(path: Path) -> Importance:
    """The importance matrix in the file ``path``, in either form.

    ArtifactError for what is damaged or no such file, and for values that nothing can be weighed by: NaN, infinite,
    negative, or all zero.
    """
    try:
        with opened(path) as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
        found = gguf_form.read(path) if is_gguf else dat_form.read(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", remedy=UNREADABLE) from error
    check_values(path, found.entries)
    return found


def write_importance(path: Path, importance: Importance) -> None:
    """Write it to ``path``, which appears whole or not at all: the older form if it is called ``.dat``, else GGUF.

    OutputError if it can't be written; ArtifactError for values that :func:`read_importance` refuses.
    """
    check_values(path, importance.entries)
    form = dat_form if path.suffix.lower() == ".dat" else gguf_form
    try:
        with new_file(path) as file:
            for piece in form.encoded(importance):
                file.write(piece)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}", remedy="give another name") from error
