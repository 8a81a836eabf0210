"""The first token after a saved chat is loaded, against reading its 2,000 tokens again.

    .venv/bin/python benchmarks/sessions.py [MODEL] [--tokens 2000] [--pairs 9] [--threads N]

Each pair is one load and one reading, in turn, of the same conversation with the same next message. Both times end
with the first piece of the answer. A load's begins before the file is opened, and its pages are dropped from the
page cache before (Linux). Also shown: what moving a chat out of the engine and back costs, and the file's size.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import edge_llama
from edge_llama import Message

QUESTION = "And what was the first thing I told you?"
LINE = "I walked along the river, saw a heron, two boats and an old mill, and thought of number {}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    with edge_llama.open(options.model, n_ctx=options.tokens + 512, threads=options.threads) as model:
        messages = conversation(model, options.tokens)
        with tempfile.TemporaryDirectory() as folder:
            compare(model, messages, Path(folder) / "a.session", options.pairs)


def conversation(model: edge_llama.Model, tokens: int) -> list[Message]:
    messages: list[Message] = []
    while model.count_tokens(messages) < tokens:
        messages += [Message("user", LINE.format(len(messages))), Message("assistant", "That sounds like a good day.")]
    return messages


def compare(model: edge_llama.Model, messages: list[Message], path: Path, pairs: int) -> None:
    again(model, messages, QUESTION)
    chat = model.chat()
    chat.messages = messages[:-2]
    chat.send(messages[-2].content, temperature=0, max_tokens=8).result()
    chat.messages = messages
    chat.save(path)
    del chat
    times = [(loaded(model, path), again(model, messages, QUESTION)) for _ in range(pairs)]
    busy = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{model.artifact.name}, {model.count_tokens(messages):,} tokens, {platform.machine()}, {busy}")
    print(f"  session file {path.stat().st_size / 1e6:.1f} MB")
    show("first token after loading it", [load for load, _ in times])
    show("first token after reading   ", [read for _, read in times])
    ratios = [read / load for load, read in times]
    print(f"  ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}), {len(ratios)} pairs")
    copies(model, path)


def loaded(model: edge_llama.Model, path: Path) -> float:
    forget(model)
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return first_token(lambda: model.load_chat(path), QUESTION)


def again(model: edge_llama.Model, messages: list[Message], question: str) -> float:
    forget(model)

    def chat() -> edge_llama.Chat:
        new = model.chat()
        new.messages = list(messages)
        return new

    return first_token(chat, question)


def first_token(make: Callable[[], edge_llama.Chat], question: str) -> float:
    started = time.perf_counter()
    with make().send(question, temperature=0) as running:
        next(running)
        return time.perf_counter() - started


def forget(model: edge_llama.Model) -> None:
    model._engine.call(model._engine.cache.clear)


def copies(model: edge_llama.Model, path: Path) -> None:
    chat, cache = model.load_chat(path), model._engine.cache
    out, back = [], []
    for _ in range(9):
        started = time.perf_counter()
        state = model._engine.call(lambda: cache.state(chat.cache_owner))
        out.append(time.perf_counter() - started)
        assert state is not None
        started = time.perf_counter()
        model._engine.call(lambda state=state: cache.adopt(state, chat.cache_owner))
        back.append(time.perf_counter() - started)
    show("copying it out of the engine", out)
    show("copying it back             ", back)


def show(what: str, seconds: list[float]) -> None:
    low, high = min(seconds), max(seconds)
    print(f"  {what}  {statistics.median(seconds) * 1e3:9.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f})", flush=True)


if __name__ == "__main__":
    main()
