"""What llama.cpp loads runs: also architectures that edge-llama does not convert, also recurrent ones."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import architectures
import field_sweep
import numpy as np
import pytest
import torch
from engines import last_logits, on_engine
from ggufs import rewritten
from refusals import refusal

import edge_llama
from edge_llama import ArtifactError, EngineError
from edge_llama.backends import crash_probe
from edge_llama.backends.base import Placement
from edge_llama.backends.llama_cpp import first_run
from edge_llama.backends.registry import open_artifact
from edge_llama.files.gguf import Header, read_header
from edge_llama.files.integrity import ROOT
from edge_llama.host.user_cache import CACHE_VARIABLE

SETTINGS = {"flash_attention": False, "kv_format": "f16", "n_batch": 512, "placement": Placement(0, "").to_json()}

TOLERANCE = {"gemma": 2e-3}  # ggml's GELU is a table of float16
_PROMPT = "Once upon a time there was"


@pytest.fixture(scope="module")
def vocabulary(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Header:
    return read_header(field_sweep.small(packaged, tmp_path_factory.mktemp("vocabulary") / "small.gguf"))


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_logits_and_continuations_equal_transformers(name: str, vocabulary: Header, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    reference = architectures.written(path, name, vocabulary)
    with edge_llama.open(path, kv_format="f32") as model:
        tokens = model.tokenizer.encode(_PROMPT)
        answer = model.generate(_PROMPT, temperature=0, max_tokens=8).result()
    with torch.no_grad():
        logits = reference(torch.tensor([tokens])).logits[0, -1].numpy()
        expected = reference.generate(torch.tensor([tokens]), max_new_tokens=8, do_sample=False)[0, len(tokens) :]
    assert np.abs(last_logits(path, tokens) - logits).max() < TOLERANCE.get(name, 1e-4)
    assert list(answer.tokens) == expected.tolist()[: len(answer.tokens)]
    assert len(answer.tokens) == 8 or answer.finish_reason == "stop"


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_vectors_equal_transformers(name: str, vocabulary: Header, tmp_path: Path) -> None:
    """Also of a recurrent model, whose texts come one by one."""
    path = tmp_path / "model.gguf"
    reference = architectures.written(path, name, vocabulary)
    texts = [_PROMPT, "Hello"]
    with edge_llama.open(path, kv_format="f32", threads=1) as model:
        vectors = model.embed(texts, "mean")
        tokens = [model.tokenizer.encode(text) for text in texts]
    with torch.no_grad():
        states = [reference(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0] for ids in tokens]
    expected = np.stack([torch.nn.functional.normalize(each.mean(0), dim=0).numpy() for each in states])
    assert (vectors * expected).sum(axis=1).min() >= 0.9999


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_a_chat_goes_on_and_goes_back(name: str, vocabulary: Header, tmp_path: Path) -> None:
    """A state that can't be taken back is read again from the start, to the same answers."""
    architectures.written(tmp_path / "model.gguf", name, vocabulary)
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
    with edge_llama.open(tmp_path / "model.gguf", kv_format="f32", threads=1) as model:
        chat = model.chat()
        first = chat.send("Hello", **settings).result()
        second = chat.send("And then?", **settings).result()
        again = chat.retry(**settings).result()
        other = model.chat().send("Hello", **settings).result()
    assert (again.tokens, other.tokens) == (second.tokens, first.tokens)


def test_an_answer_that_was_stopped_leaves_a_recurrent_model_usable(vocabulary: Header, tmp_path: Path) -> None:
    architectures.written(tmp_path / "model.gguf", "mamba", vocabulary)
    with edge_llama.open(tmp_path / "model.gguf", kv_format="f32", threads=1) as model:
        expected = model.generate(_PROMPT, temperature=0, max_tokens=6).result().tokens
        for taken in range(6):
            running = model.generate(_PROMPT * 30, temperature=0, max_tokens=200)
            for _ in range(taken):
                next(running)
            running.close()
            on_engine(model, lambda session, tower: _check(len(session.tokens), session.length))
            assert model.generate(_PROMPT, temperature=0, max_tokens=6).result().tokens == expected


def _check(tokens: int, length: int) -> None:
    assert tokens == length


def test_a_file_that_ends_the_process_ends_a_child_instead(vocabulary: Header, tmp_path: Path) -> None:
    path = architectures.deadly(tmp_path / "bad.gguf", vocabulary)
    with refusal(ArtifactError, r"a trial run .* died of signal 6: .*unsupported types.*f16", path):
        edge_llama.open(path)


@pytest.fixture
def tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many children were started for models since this was last asked; nothing was found out before."""
    started: list[object] = []
    really = crash_probe.subprocess.run

    def run(*args: Any, **options: Any) -> Any:
        if first_run.__name__ in args[0]:
            started.append(args)
        return really(*args, **options)

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(crash_probe, "subprocess", SimpleNamespace(**vars(crash_probe.subprocess) | {"run": run}))

    def count() -> int:
        number = len(started)
        started.clear()
        return number

    return count


def test_a_file_is_tried_once_for_each_of_its_states_and_settings(
    tries: Callable[[], int], vocabulary: Header, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"

    def opened(**settings: Any) -> int:
        edge_llama.open(path, n_ctx=64, **settings).close()
        return tries()

    architectures.written(path, "qwen2", vocabulary)
    assert [opened(), opened(), opened(kv_format="f32"), opened()] == [1, 0, 1, 0]
    architectures.written(path, "qwen2", vocabulary, seed=1)
    assert [opened(), opened()] == [1, 0]


def test_the_trial_says_whether_texts_can_be_embedded(
    tries: Callable[[], int], vocabulary: Header, tmp_path: Path
) -> None:
    """What an earlier version found does not: then it is tried when it is asked for, and known from then on."""
    path = tmp_path / "model.gguf"
    architectures.written(path, "qwen2", vocabulary)

    def embedded(found: dict[str, bool]) -> int:
        (file,) = (tmp_path / "cache" / "first-run").iterdir()
        file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "found": found}), "utf-8")
        with edge_llama.open(path, n_ctx=64) as model:
            assert tries() == 0
            model.embed(["Hello"], "mean")
        return tries()

    edge_llama.open(path, n_ctx=64).close()
    assert tries() == 1
    assert embedded({"survived": True, "embeds": True}) == 0
    assert embedded({"survived": True}) == 1
    with pytest.raises(EngineError, match="cannot embed texts with it: a trial in a process of its own died"):
        embedded({"survived": True, "embeds": False})


def test_a_llama_that_we_wrote_needs_no_trial(tries: Callable[[], int], converted: Path, tmp_path: Path) -> None:
    edge_llama.open(converted, n_ctx=64).close()
    assert tries() == 0
    foreign = rewritten(converted, tmp_path / "foreign.gguf", fields={ROOT: None})
    edge_llama.open(foreign, n_ctx=64).close()
    assert tries() == 1


@pytest.mark.parametrize("executable", ["/nowhere/python", "/bin/true", "", None])
def test_where_no_child_can_run_the_model_opens_all_the_same(
    executable: str | None,
    vocabulary: Header,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    architectures.written(tmp_path / "model.gguf", "qwen2", vocabulary)
    artifact = open_artifact(tmp_path / "model.gguf")
    monkeypatch.setattr(sys, "executable", executable)
    with caplog.at_level(logging.INFO):
        first_run.require(artifact, SETTINGS)
    assert "not tried out" in caplog.text
    assert not (tmp_path / "cache" / "first-run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script as interpreter")
@pytest.mark.parametrize(("signal", "blamed"), [("KILL", "want of memory"), ("SEGV", "llama.cpp does not work here")])
def test_a_death_that_is_not_the_files_fault_is_not_put_on_it(
    signal: str, blamed: str, vocabulary: Header, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real children that die after they began: for want of memory, and by an engine that dies of everything."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    architectures.written(tmp_path / "model.gguf", "qwen2", vocabulary)
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho began\nkill -{signal} $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(EngineError, match=blamed):
        first_run.require(open_artifact(tmp_path / "model.gguf"), SETTINGS)
    assert not (tmp_path / "cache" / "first-run").exists()
