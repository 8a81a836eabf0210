"""The vocabulary of a GGUF file alone, at work without its weights: for prompts of a model that runs elsewhere."""

import json
import os
import weakref
from pathlib import Path
from typing import Any

from edge_llama.backends import crash_probe
from edge_llama.backends.llama_cpp import build_probe, first_run
from edge_llama.backends.llama_cpp.tokenizer import GGUFTokenizer, overrides
from edge_llama.errors import ArtifactError, EdgeLlamaError
from edge_llama.files.gguf_text import GGUFArtifact, read_gguf_text
from edge_llama.host import user_cache

_KIND = "vocabulary"
_TEXT = "Hello, world! It's 12345\n\n\tnaïve 日本語 🦙 <|x|> </s> _"


def open_vocabulary(artifact: GGUFArtifact) -> GGUFTokenizer:
    """The tokenizer, whose memory is given back with it. ArtifactError if llama.cpp refuses the vocabulary.

    One that might end the process meets a child first, as :mod:`first_run` has whole files do.
    """
    from edge_llama.backends.llama_cpp.text import the_engine  # noqa: PLC0415 - loads native code

    lib = the_engine()
    _require(artifact)
    return _opened(lib, artifact)


def _opened(lib: Any, artifact: GGUFArtifact) -> GGUFTokenizer:
    options = lib.llama_model_default_params()
    options.vocab_only = True
    options.kv_overrides = overrides(lib, artifact.header)
    model = lib.llama_model_load_from_file(os.fsencode(artifact.path), options)
    if not model:
        raise ArtifactError(
            f"{artifact.path}: llama.cpp cannot load its vocabulary",
            remedy="download the file again, or update llama-cpp-python",
        )
    tokenizer = GGUFTokenizer(lib, lib.llama_model_get_vocab(model), artifact.header)
    weakref.finalize(tokenizer, lib.llama_model_free, model).atexit = False  # a thread may use it to the very end
    return tokenizer


def _require(artifact: GGUFArtifact) -> None:
    """ArtifactError if llama.cpp would end the process on this vocabulary."""
    if first_run.is_known(artifact) or not crash_probe.has_children():
        return
    key = {"file": first_run.identity_of_header(artifact.header), "engine": build_probe.build()}
    if user_cache.recall(_KIND, key) is None and first_run.PROBE.run(__name__, artifact.path) is not None:
        user_cache.remember(_KIND, key, {"survived": True})


def main(path: str) -> None:
    """The child: what Python can tell of, the parent will tell when it does the same."""
    crash_probe.begin()
    try:
        import llama_cpp  # noqa: PLC0415 - loads native code, in the child alone

        tokenizer = _opened(llama_cpp, read_gguf_text(Path(path)))
        for token in tokenizer.encode(_TEXT):
            tokenizer.piece(token)
        for token in range(tokenizer.n_vocab):
            tokenizer.is_end(token)
    except EdgeLlamaError:
        pass
    crash_probe.end(json.dumps({}))
