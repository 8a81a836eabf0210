"""A GGUF vocabulary at work in a child process: what text becomes by it, before there are weights to go with it.

A child, since llama.cpp ends the process on some vocabularies, and a conversion's host need not load it.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

from edge_llama.backends import crash_probe
from edge_llama.backends.llama_cpp import build_probe
from edge_llama.errors import ArtifactError, EdgeLlamaError, EngineError, OptionError, TemplateError

_SECONDS = 120  # a second when quiet
_KILLED = -9  # perhaps for want of memory

Ids = list[list[int] | None]
"""Of each text; None of one that the vocabulary can't express."""
Chat = tuple[str, list[int]] | None
"""A conversation as the file's template writes it, and its ids; None if there is no template, or it takes no such."""


def encode(vocabulary: bytes, texts: Sequence[str], turns: Sequence[tuple[str, str]]) -> tuple[Ids, Chat] | str:
    """What the GGUF file ``vocabulary``, which needs no tensors, makes of plain texts and of a chat.

    ``turns`` are roles and texts. A text says why there is no engine to ask. ArtifactError if it refuses the file.
    """
    outcome = _asked(vocabulary, json.dumps({"texts": list(texts), "turns": list(turns)}))
    if isinstance(outcome, str):
        return outcome
    if outcome.said is None and (problem := _engine_problem()):
        return problem
    said = outcome.said or {"error": f"llama.cpp cannot read the vocabulary: a process of its own {outcome.how}"}
    if "error" in said:
        raise ArtifactError(str(said["error"]), remedy="update llama-cpp-python, or report it")
    return said["texts"], None if said["chat"] is None else (said["chat"][0], said["chat"][1])


def _asked(vocabulary: bytes, asked: str) -> crash_probe.Outcome | str:
    """How a child ended that was asked, or why there was none to ask."""
    if build_probe.build() is None:
        return "llama-cpp-python is not installed"
    if not crash_probe.has_children():
        return "this process can start no child"
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / "vocabulary.gguf", Path(folder) / "asked.json"
            files[0].write_bytes(vocabulary)
            files[1].write_text(asked, "utf-8")
            outcome = crash_probe.run(__name__, *map(str, files), seconds=_SECONDS)
    except OSError as error:
        return f"no child process can be given it: {error}"
    except TimeoutExpired:
        return f"a child process took more than {_SECONDS} s"
    return outcome if outcome.began and outcome.code != _KILLED else f"a child process {outcome.how}"


def _engine_problem() -> str:
    """What is wrong with the engine itself; empty if it works here."""
    try:
        build_probe.check()
    except EngineError as error:
        return error.message
    return ""


def main(path: str, asked: str) -> None:
    """The child."""
    crash_probe.begin()
    try:
        said = _encoded(Path(path), json.loads(Path(asked).read_text("utf-8")))
    except EdgeLlamaError as error:
        said = {"error": str(error)}
    crash_probe.end(json.dumps(said))


def _encoded(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    import llama_cpp  # noqa: PLC0415 - loads native code, in the child alone

    from edge_llama.backends.llama_cpp.tokenizer import GGUFTokenizer, overrides  # noqa: PLC0415
    from edge_llama.files.gguf import read_header  # noqa: PLC0415

    header = read_header(path)
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    options.kv_overrides = overrides(llama_cpp, header)
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
    if not model:
        raise ArtifactError("llama.cpp refuses the vocabulary")
    tokenizer = GGUFTokenizer(llama_cpp, llama_cpp.llama_model_get_vocab(model), header)
    texts = [_ids(tokenizer, text) for text in asked["texts"]]
    template = header.get("tokenizer.chat_template", str, "")
    return {"texts": texts, "chat": _chat(tokenizer, template, asked["turns"]) if template else None}


def _ids(tokenizer: Any, text: str) -> list[int] | None:
    try:
        return list(tokenizer.encode(text))
    except OptionError:
        return None


def _chat(tokenizer: Any, source: str, turns: Sequence[tuple[Any, str]]) -> tuple[str, list[int]] | None:
    """The whole conversation; its first turn alone where the template takes no more."""
    from edge_llama.prompts.chat_template import ChatTemplate  # noqa: PLC0415
    from edge_llama.prompts.messages import Message  # noqa: PLC0415

    messages = [Message(role, text) for role, text in turns]
    for asked in (messages, messages[:1]):
        try:
            return ChatTemplate(source, tokenizer, "the chat template").text_and_tokens(asked)
        except (TemplateError, OptionError):
            continue
    return None
