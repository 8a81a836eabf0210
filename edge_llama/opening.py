"""``edge_llama.open``: a model in this process, or in one of its own."""

import os
from typing import Unpack

from edge_llama.model import Model
from edge_llama.planning.options import OpenOptions


def open(  # noqa: A001 - as in io.open; used as edge_llama.open
    model: str | os.PathLike[str] | None = None, *, isolate: bool = False, **options: Unpack[OpenOptions]
) -> Model:
    """Open a model: a ``.gguf`` file, a folder with one or with an ONNX model, the name ``smollm2``, or None.

    None is the default model. A folder with an ONNX model is as onnxruntime-genai reads it; ONNX Runtime runs it.
    ``options``: see :class:`edge_llama.planning.options.OpenOptions`.

    With ``isolate`` the model works in a process of its own, which no signal of a terminal reaches and which ends with
    this one; this process loads no engine. If that process dies, whoever waits for it gets an EngineDiedError, the
    next call starts another, and chats go on. A ``logits_processor`` can't be had there.

    Raises ArtifactError, OptionError or EngineError; the latter also if llama.cpp does not work on this processor,
    which a child process finds out once for each build of it.
    """
    if isolate:
        from edge_llama.isolation.remote import IsolatedModel  # noqa: PLC0415 - for those who want it

        return IsolatedModel(model, **options)
    return Model(model, **options)
