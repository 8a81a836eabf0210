"""``edge_llama.open``: a model in this process, in one of its own, or on a server."""

import os
from typing import Unpack

from edge_llama.errors import OptionError
from edge_llama.files.artifact import server_url
from edge_llama.model import Model
from edge_llama.planning.options import OpenOptions


def open(  # noqa: A001 - as in io.open; used as edge_llama.open
    source: str | os.PathLike[str] | None = None,
    /,
    *,
    model: str | os.PathLike[str] | None = None,
    isolate: bool = False,
    **options: Unpack[OpenOptions],
) -> Model:
    """Open a model: a ``.gguf`` file, a folder with one or with an ONNX model, the name ``smollm2``, or None.

    None is the default model. A folder with an ONNX model is as onnxruntime-genai reads it; ONNX Runtime runs it.
    ``options``: see :class:`edge_llama.planning.options.OpenOptions`. ``model`` alone is the same as ``source``.

    With ``isolate`` the model works in a process of its own, which no signal of a terminal reaches and which ends with
    this one; this process loads no engine. If that process dies, whoever waits for it gets an EngineDiedError, the
    next call starts another, and chats go on. A ``logits_processor`` can't be had there.

    ``http://host:8000/v1`` is a model that a server runs (vLLM, llama-server, ``edge-llama serve``): ``model`` is its
    name there, and ``tokenizer`` what prompts are rendered by, here. The server gets token ids, so that no text can
    become a control token. What it can't do is refused by name; if it dies, whoever waits gets a RemoteError.

    Raises ArtifactError, OptionError or EngineError; the latter also if llama.cpp does not work on this processor,
    which a child process finds out once for each build of it. RemoteError for a server that does not answer.

    Examples:
        >>> with edge_llama.open(n_ctx=256) as model:  # or a path; None is the default model
        ...     print(model.chat(temperature=0).send("What is the capital of Japan?").result().text)
        The capital of Japan is Tokyo.
    """
    if source is None:
        source, model = model, None
    if (url := server_url(source)) is not None:
        return _remote(url, model, isolate, options)
    if model is not None:
        raise OptionError("model is the name of a model on a server", remedy="leave it out, or give the server's URL")
    if isolate:
        from edge_llama.isolation.remote import IsolatedModel  # noqa: PLC0415 - for those who want it

        return IsolatedModel(source, **options)
    return Model(source, **options)


def _remote(url: str, name: str | os.PathLike[str] | None, isolate: bool, options: OpenOptions) -> Model:
    from edge_llama.remote.model import RemoteModel  # noqa: PLC0415 - for those who want it

    if isolate:
        raise OptionError(
            "isolate is for models that run here: a server has processes of its own", remedy="leave it out"
        )
    if name is not None:
        options = {**options, "remote_model": os.fspath(name)}
    return RemoteModel(url, **options)
