"""Keyword arguments of the public API are typed: mypy finds a typo or a wrong type in a caller's program."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Unpack, get_origin, get_type_hints

import pytest

import edge_llama

RIGHT = """
import edge_llama
import numpy as np
from collections.abc import Sequence
from numpy.typing import NDArray
from typing import Unpack


def never_first(token_ids: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    logits[0] = -np.inf
    return logits


def weather(city: str) -> str:
    return city


def asked(chat: edge_llama.Chat, **options: Unpack[edge_llama.AnswerOptions]) -> edge_llama.Answer:
    return chat.send("Hello", **options).result()


with edge_llama.open() as model:
    chat = model.chat(system="Be brief.", when_full="compact", on_shortened=print, temperature=0, tools=[weather])
    for piece in chat.send("Hello", images=["cat.png"], max_tokens=3, stop=["."], logits_processor=never_first):
        print(piece.text)
    chat.retry(seed=5, logits_processor=[never_first, never_first])
    chat.run_tools("Paris?", max_rounds=2, tool_format="json", template_variables={"date_string": "today"})
    chat.send("Rome?", tool_choice="required").result()
    chat.retry(tool_choice={"type": "function", "function": {"name": "weather"}})
    chat.answer(top_k=3).result().text.upper()
    options = edge_llama.AnswerOptions(temperature=0.5, tools=[weather])
    asked(chat, **options)
    edge_llama.SamplingParams(temperature=0.5, json_schema={"type": "object"})
    model.answer([edge_llama.Message("user", "Hello")], on_finish=print, regex="a+", logit_bias={5: 1.5})
    model.generate("Once", min_p=0.1, logprobs=3, max_tokens=None)
    model.load_chat("chat.session", when_full="drop-oldest", seed=1)
    (model.embed(["one text"], pooling="last") @ model.embed(["another"]).T).shape
"""
WRONG = {
    'model.generate("x", temprature=0.5)': "temprature",
    'model.generate("x", tools=[])': "tools",
    'model.generate("x", temperature="hot")': "temperature",
    'model.generate("x", logits_processor=len)': "logits_processor",
    "model.answer([], max_token=3)": "max_token",
    "model.answer([], top_k=1.5)": "top_k",
    'model.chat(system="x", when_ful="error")': "when_ful",
    'model.chat(when_full="sometimes")': "when_full",
    'model.embed(["x"], pooling="max")': "embed",
    "model.chat(temperatur=0)": "temperatur",
    'model.load_chat("x", seeds=1)': "seeds",
    'model.chat().send("x", image=["cat.png"])': "image",
    'model.chat().send("x", stop=5)': "stop",
    "model.chat().retry(sed=1)": "sed",
    "model.chat().answer(logprob=1)": "logprob",
    'model.chat().run_tools("x", max_round=1)': "max_round",
    'model.chat().send("x", tool_choice=5)': "tool_choice",
    "edge_llama.SamplingParams(tempo=1)": "tempo",
    'edge_llama.AnswerOptions(tool_form="json")': "tool_form",
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What mypy says of each program, by its name; one run for all, since it reads the whole package."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "right.py").write_text(RIGHT)
    for at, line in enumerate(WRONG):
        (folder / f"wrong{at}.py").write_text(f"import edge_llama\n\nmodel = edge_llama.open()\n{line}\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(folder / "cache")]
    done = subprocess.run([*command, str(folder)], check=False, capture_output=True, text=True, cwd=folder)
    assert not done.stderr, done.stderr
    said: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name = Path(line.partition(":")[0]).stem
        said[name] = f"{said.get(name, '')}{line}\n"
    return said


def test_a_right_program_passes(complaints: dict[str, str]) -> None:
    assert "right" not in complaints, complaints["right"]


@pytest.mark.parametrize("at", range(len(WRONG)), ids=list(WRONG))
def test_a_wrong_one_is_told_by_name(complaints: dict[str, str], at: int) -> None:
    line, name = list(WRONG.items())[at]
    assert re.search(rf":4: error: .*{name}", complaints.get(f"wrong{at}", "")), (line, complaints.get(f"wrong{at}"))


def public_functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """Those of ``__all__`` and their classes' methods, by name."""
    for name in edge_llama.__all__:
        thing = getattr(edge_llama, name)
        methods = inspect.getmembers(thing, inspect.isfunction) if inspect.isclass(thing) else [("", thing)]
        for method, function in methods:
            is_ours = inspect.isfunction(function) and function.__module__.startswith("edge_llama")
            if is_ours and (method == "__init__" or not method.startswith("_")):
                yield f"{name}.{method}", function


def test_no_public_function_takes_just_any_keyword() -> None:
    kinds = {
        name: get_origin(parameter.annotation)
        for name, function in public_functions()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.VAR_KEYWORD
    }
    assert {"Chat.__init__", "Chat.send", "Model.generate", "Model.load_chat"} <= kinds.keys()
    assert set(kinds.values()) == {Unpack}, kinds


def test_the_options_are_the_fields() -> None:
    kinds = get_type_hints(edge_llama.SamplingParams)
    names = [field.name for field in fields(edge_llama.SamplingParams)]
    assert get_type_hints(edge_llama.SamplingOptions) == {name: kinds[name] for name in names}
