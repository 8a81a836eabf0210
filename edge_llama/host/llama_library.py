"""Where llama.cpp's libraries lie: within llama-cpp-python, or where its variable says that others are."""

import os
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "LLAMA_CPP_LIB_PATH"
"""Names a folder with libllama and libggml*; llama-cpp-python itself reads it."""


def library_folder() -> Path | None:
    """The folder of libllama and libggml*; None if llama-cpp-python is not installed. Nothing is loaded."""
    spec = find_spec("llama_cpp")
    if spec is None or not spec.origin:
        return None
    named = os.environ.get(VARIABLE)
    return Path(spec.origin).parent / "lib" if named is None else Path(named)
