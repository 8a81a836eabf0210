"""An option that there is not: the nearest is named, the error is ours, and no class of the inside is in it."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminals import EDGE_LLAMA

import edge_llama
from edge_llama import Model, SamplingParams, UnknownOptionError, convert

INSIDE = ("__init__", "Params.", "OptionText", "OpenOptions", "unexpected keyword")


@pytest.fixture(params=[False, True], ids=["here", "isolated"], scope="module")
def model(request: pytest.FixtureRequest, small_talk: Path) -> Any:
    with edge_llama.open(small_talk, n_ctx=256, isolate=request.param) as opened:
        yield opened


CALLS: list[tuple[Callable[[Any], object], str]] = [
    (
        lambda model: model.generate("Hi", temprature=1),
        "generate has no option 'temprature'; did you mean temperature?",
    ),
    (lambda model: model.generate("Hi", dead_line=1), "did you mean deadline?"),
    (lambda model: model.chat().send("Hi", temprature=1), "send has no option 'temprature'; did you mean temperature?"),
    (lambda model: model.chat().send("Hi", image=["x.png"]), "send has no option 'image'; did you mean images?"),
    (lambda model: model.chat().send("Hi", tool_choise="none"), "did you mean tool_choice?"),
    (lambda model: model.chat(sytem="x"), "chat has no option 'sytem'; did you mean system?"),
    (lambda model: model.chat(maxtokens=3), "chat has no option 'maxtokens'; did you mean max_tokens?"),
    (lambda model: model.chat(zzzzzz=3), "chat has no option 'zzzzzz'; known: adapters, deadline, "),
    (lambda model: model.chat().run_tools("Hi", max_round=3), "did you mean max_rounds?"),
    (lambda model: model.chat().edit("Hi", temprature=1), "edit has no option 'temprature'; did you mean temperature?"),
    (lambda model: model.answer([], topk=3), "answer has no option 'topk'; did you mean top_k?"),
]


@pytest.mark.parametrize(("call", "said"), CALLS, ids=[said[:40] for _, said in CALLS])
def test_of_answers(model: Model, call: Callable[[Model], object], said: str) -> None:
    with pytest.raises(UnknownOptionError) as caught:
        call(model)
    check(caught.value, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_ctxx": 5}, "open has no option 'n_ctxx'; did you mean n_ctx?"),
        ({"isolated": True}, "did you mean isolate?"),
        ({"gpu_layers": 3}, "open has no option 'gpu_layers'; "),
        ({"isolate": True, "flash_attn": True}, "did you mean flash_attention?"),
    ],
)
def test_of_open(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownOptionError) as caught:
        edge_llama.open(None, **options)
    check(caught.value, said)


def test_of_convert(tmp_path: Path) -> None:
    options: dict[str, Any] = {"qaunt": "q8_0"}
    for call in (convert.convert, convert.plan):
        with pytest.raises(UnknownOptionError) as caught:
            call("smollm2", tmp_path / "out.gguf", **options)
        check(caught.value, f"{call.__name__} has no option 'qaunt'; did you mean quant?")


def test_of_sampling_params() -> None:
    unknown: dict[str, Any] = {"temprature": 1}
    with pytest.raises(UnknownOptionError) as caught:
        SamplingParams(**unknown)
    check(caught.value, "SamplingParams has no option 'temprature'; did you mean temperature?")
    assert SamplingParams(0.5, 3) == SamplingParams(temperature=0.5, top_k=3)


def check(error: UnknownOptionError, said: str) -> None:
    assert said in str(error)
    assert isinstance(error, TypeError)
    assert isinstance(error, edge_llama.OptionError)
    assert not [word for word in INSIDE if word in str(error)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["run", "x", "--n-ctxx", "5"], "--n-ctx"), (["chat", "--temprature", "1"], "--temperature"), (["chta"], "chat")],
)
def test_of_the_command_line(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [EDGE_LLAMA, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr.replace(arguments[-1], "")
