"""Saved chats: another process goes on exactly where one stopped; what can't be used is an error and stays as it is."""

import hashlib
import json
import logging
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import CAPITAL, decoded, logits_along, on_engine
from ggufs import rewritten
from numpy.typing import NDArray

import converters
import edge_llama
from edge_llama import Message
from edge_llama.backends.registry import open_artifact
from edge_llama.files import integrity
from edge_llama.files.gguf import TensorInfo
from edge_llama.generation import generate
from edge_llama.runtime import session_file
from edge_llama.sampling.params import SamplingParams

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def saved(model: edge_llama.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sessions") / "japan.session"
    chat = model.chat(system="Answer briefly.")
    chat.send(CAPITAL, temperature=0).result()
    chat.save(path)
    return path


@pytest.mark.parametrize("which", ["exact", "model"])
def test_another_process_goes_on_exactly_where_one_stopped(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: edge_llama.Model = request.getfixturevalue(which)
    on_engine(model, lambda session, tower: session.rewind(0))
    chat = model.chat(system="Answer briefly.")
    chat.send(CAPITAL, temperature=0, max_tokens=6).result()
    chat.save(tmp_path / "a.session")
    tokens = on_engine(model, lambda session, tower: list(session.tokens))
    following = [504, 3575, 282, 3085, 314]
    logits = logits_along(model, following)
    on_engine(model, lambda session, tower: session.rewind(0))
    reread = model.load_chat(tmp_path / "a.session")
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=8)
    continued = generate(model._engine, tokens, params, owner=reread.cache_owner).result()
    answer = chat.send("And what did I ask first?", temperature=0, max_tokens=8, logprobs=8).result()

    np.savez(tmp_path / "given.npz", tokens=tokens, next=following)
    script = [sys.executable, ROOT / "resumption.py", model.artifact.path, tmp_path / "a.session"]
    files = [tmp_path / "given.npz", tmp_path / "out.npz"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT.parent), str(ROOT)])}
    subprocess.run([*script, *files], check=True, timeout=300, env=environment)
    out = np.load(tmp_path / "out.npz")

    assert np.array_equal(out["logits"], logits)
    # llama.cpp counts from 1: nothing was read several at once, and one at a time what the test appended.
    assert out["counts"].tolist() == [1, len(following)]
    assert tuple(out["continued"]) == continued.tokens
    is_cut = continued.finish_reason == "length"  # then the last token was not given to the engine
    assert out["continued_counts"].tolist() == [1, len(following) + len(continued.tokens) - is_cut]
    theirs = [int(token) for token in out["answer"]]
    pairs = zip(theirs, answer.tokens, answer.logprobs, strict=False)
    parting = next(((token, told) for token, ours, told in pairs if token != ours), None)
    if parting is None:
        assert theirs == list(answer.tokens)
    else:  # quantized weights' kernels make tenths of a sum's last bits: a near token may lead
        assert which == "model"
        token, told = parting
        assert {top.token_id: top.logprob for top in told.top}[token] > told.logprob - 1
    prompt, cached = out["prompt_and_cached"].tolist()
    assert cached >= len(tokens)
    assert out["answer_counts"][0] == prompt - cached


def test_sampling_after_a_load_equals_sampling_before(exact: edge_llama.Model, tmp_path: Path) -> None:
    """The logits come from the file then, not from the engine: the same seeds choose the same tokens."""
    chat = exact.chat()
    chat.send("My favourite colour", temperature=0, max_tokens=4).result()
    chat.save(tmp_path / "a.session")
    tokens = on_engine(exact, lambda session, tower: list(session.tokens))

    def answers(load: Callable[[], Any]) -> list[tuple[int, ...]]:
        tokens_of_each = []
        for seed in range(6):
            _kept = load()
            params = SamplingParams(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=seed, max_tokens=1)
            tokens_of_each.append(generate(exact._engine, tokens, params, owner=chat.cache_owner).result().tokens)
        return tokens_of_each

    def read_again() -> None:
        on_engine(exact, lambda session, tower: session.rewind(len(tokens) - 1))

    before = answers(read_again)
    assert len(set(before)) > 1
    assert answers(lambda: exact.load_chat(tmp_path / "a.session")) == before


def test_a_saved_chat_is_the_conversation(model: edge_llama.Model, saved: Path) -> None:
    chat = model.load_chat(saved)
    assert [message.role for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.system == "Answer briefly."
    assert chat.reread_reason is None
    assert "Tokyo" in chat.messages[-1].content


def test_the_file_is_its_owners_only_and_takes_the_place_of_an_older_one(
    model: edge_llama.Model, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "naïve chat.session"
    path.write_bytes(saved.read_bytes())
    path.chmod(0o644)
    chat = model.load_chat(saved)
    chat.send("Hi", temperature=0, max_tokens=2).result()
    chat.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(model.load_chat(path).messages) == 5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_no_session_is_left_alone(model: edge_llama.Model, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(edge_llama.OutputError, match="is no session"):
        model.chat().save(notes)
    with pytest.raises(edge_llama.OutputError, match="No such file"):
        model.chat().save(tmp_path / "missing" / "a.session")
    assert notes.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [notes]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_write_that_fails_leaves_the_older_session(
    model: edge_llama.Model, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.session"
    path.write_bytes(saved.read_bytes())
    real = os.open

    def full(name: Any, *args: Any, **kwargs: Any) -> int:
        return real("/dev/full", os.O_WRONLY) if str(name).endswith(".partial") else real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(edge_llama.OutputError, match="No space left"):
        model.load_chat(saved).save(path)
    assert path.read_bytes() == saved.read_bytes()


SAVING = """
import sys
import numpy as np
from edge_llama import Message
from edge_llama.runtime import session_file
from pathlib import Path
number = 0
while True:
    state = session_file.State(np.full(9, number, np.int32), np.full(3_000_000, number % 256, np.uint8), None)
    saved = session_file.SavedChat("m", "0", {}, (Message("user", str(number)),), state)
    session_file.write(Path(sys.argv[1]), saved)
    print(number, flush=True)
    number += 1
"""


def test_a_process_killed_while_it_saves_leaves_the_last_session_whole(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / "a[1].session"
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", SAVING, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process, process.stdout as out:
            told = int(out.readline())
            time.sleep(float(rng.random()) * 0.05)
            process.kill()
            told = int(([told, *out.read().split()])[-1])
        saved = session_file.read(path)
        assert saved.state is not None
        number = int(saved.messages[0].content)
        assert number >= told
        assert (saved.state.kv == number % 256).all()
    for left in tmp_path.glob("*.partial"):
        os.utime(left, (0, 0))
    session_file.write(path, saved)
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_chat_can_be_saved(model: edge_llama.Model, tmp_path: Path) -> None:
    model.chat(system="Be brief.").save(tmp_path / "a.session")
    chat = model.load_chat(tmp_path / "a.session")
    assert chat.messages == [Message("system", "Be brief.")]


def test_saving_while_an_answer_is_generated_is_refused(model: edge_llama.Model, tmp_path: Path) -> None:
    chat = model.chat()
    with chat.send("Tell me a long story.", temperature=0) as running:
        next(running)
        with pytest.raises(edge_llama.EngineError, match="still being made"):
            chat.save(tmp_path / "a.session")
    assert not (tmp_path / "a.session").exists()


def places(data: bytes, rng: np.random.Generator) -> list[int]:
    """Bytes to damage: in the prefix, the header, the logits, the cache, the hash."""
    header = struct.unpack_from("<I", data, 12)[0]
    ranges = [(8, 16), (16, 16 + header), (16 + header, 16 + header + 1000), (16 + header, len(data) - 32)]
    ranges.append((len(data) - 32, len(data)))
    return [int(rng.integers(*each)) for each in ranges for _ in range(6)] + list(range(16))


def test_any_flipped_bit_is_an_error(
    model: edge_llama.Model, saved: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = saved.read_bytes()
    path = tmp_path / "damaged.session"
    for at in places(data, rng):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(edge_llama.SessionError, match=str(path)):
            model.load_chat(path)
        assert path.read_bytes() == damaged
    assert model.load_chat(saved).send("Hi", temperature=0, max_tokens=2).result().tokens


def test_a_file_cut_at_any_length_or_with_more_is_an_error(
    model: edge_llama.Model, saved: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = saved.read_bytes()
    path = tmp_path / "cut.session"
    for length in [*range(20), 100, len(data) - 1, len(data) - 32, *rng.integers(0, len(data), 10)]:
        path.write_bytes(data[: int(length)])
        with pytest.raises(edge_llama.SessionError, match=str(path)):
            model.load_chat(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(edge_llama.SessionError, match="not as they were written"):
        model.load_chat(path)


def test_a_newer_version_is_an_error_that_says_so(model: edge_llama.Model, saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    struct.pack_into("<I", data, 8, 3)
    data[-32:] = hashlib.sha256(data[:-32]).digest()
    (tmp_path / "new.session").write_bytes(data)
    with pytest.raises(edge_llama.SessionError, match=r"format 3.*newer edge-llama"):
        model.load_chat(tmp_path / "new.session")
    assert (tmp_path / "new.session").read_bytes() == data


@pytest.mark.parametrize("content", [b"", b"edgelses", b"hello, this is no session at all", b"GGUF" + bytes(100)])
def test_what_is_no_session_is_an_error(model: edge_llama.Model, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(edge_llama.SessionError, match="no session"):
        model.load_chat(tmp_path / "x")


@pytest.mark.parametrize("bad", [None, 5, b"x", "a\0b"])
def test_a_path_that_is_none_is_an_error(model: edge_llama.Model, bad: Any) -> None:
    with pytest.raises(edge_llama.OptionError, match="path"):
        model.load_chat(bad)
    with pytest.raises(edge_llama.OptionError, match="path"):
        model.chat().save(bad)


def test_a_missing_file_or_a_folder_is_an_error(model: edge_llama.Model, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(edge_llama.SessionError, match="can't be read"):
            model.load_chat(path)


def sealed(path: Path, source: Path, change: Callable[[dict[str, Any]], None], cut: int = 0) -> Path:
    """The session with a changed header, or ``cut`` bytes less of the cache, and a hash that is right."""
    data = source.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    fields = json.loads(data[16 : 16 + length])
    change(fields)
    header = json.dumps(fields).encode()
    body = data[16 + length : len(data) - 32 - cut]
    whole = data[:12] + struct.pack("<I", len(header)) + header + body
    path.write_bytes(whole + hashlib.sha256(whole).digest())
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("tokens"),
        lambda fields: fields.update(tokens=["x"]),
        lambda fields: fields.update(tokens=[10**30]),
        lambda fields: fields.update(tokens=[-1]),
        lambda fields: fields.update(tokens=[49152]),
        lambda fields: fields.update(n_logits=-1),
        lambda fields: fields.update(n_logits=7),
        lambda fields: fields.update(n_logits=10**12),
        lambda fields: fields.update(messages=[{"role": "robot", "content": ""}]),
        lambda fields: fields.update(messages=5),
        lambda fields: fields.update(settings=None),
        lambda fields: fields.update(images=["0" * 64]),
    ],
)
def test_a_header_that_makes_no_sense_is_an_error(
    model: edge_llama.Model, saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    with pytest.raises(edge_llama.SessionError):
        model.load_chat(sealed(tmp_path / "odd.session", saved, change))
    assert model.load_chat(saved).reread_reason is None


def test_bytes_that_the_engine_refuses_are_an_announced_reread(
    model: edge_llama.Model, saved: Path, tmp_path: Path
) -> None:
    for cut in (4, 1000):
        on_engine(model, lambda session, tower: session.rewind(0))
        chat = model.load_chat(sealed(tmp_path / "odd.session", saved, lambda fields: None, cut))
        assert chat.reread_reason is not None
        assert "llama.cpp read" in chat.reread_reason
        answer = chat.send("Thanks", temperature=0, max_tokens=2).result()
        assert answer.timings.cached_tokens == 0
        assert answer.tokens


def test_another_model_of_the_same_shape_is_an_error_that_names_both(
    model: edge_llama.Model, saved: Path, tmp_path: Path
) -> None:
    """The same file but for one bit of one weight, with the hashes of the first: as other tools copy them."""

    def other_bit(info: TensorInfo, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        raw[0, 0] ^= info.name == "blk.7.attn_v.weight"
        return raw

    same = rewritten(model.artifact.path, tmp_path / "same.gguf")
    other = rewritten(model.artifact.path, tmp_path / "other.gguf", data=other_bit)
    assert same.read_bytes() == model.artifact.path.read_bytes()
    with edge_llama.open(same, n_ctx=512) as opened:
        assert opened.load_chat(saved).reread_reason is None
    before = saved.read_bytes()
    with edge_llama.open(other, n_ctx=512) as opened, pytest.raises(edge_llama.SessionError) as caught:
        opened.load_chat(saved)
    assert str(other) in str(caught.value)
    assert all(each[:12] in str(caught.value) for each in (opened.identity, model.identity))
    assert saved.read_bytes() == before


def test_any_tensor_tells_models_apart_without_hashes(llama3: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    converters.convert(llama3, tmp_path / "a.gguf", quant="f32")
    bare = dict.fromkeys((integrity.ROOT, integrity.TENSORS, integrity.CERTIFICATE))
    path = rewritten(tmp_path / "a.gguf", tmp_path / "bare.gguf", fields=bare)
    artifact = open_artifact(path)
    identities = {artifact.identity()}
    for tensor in artifact.tensors:
        data = bytearray(path.read_bytes())
        data[tensor.offset + int(rng.integers(min(tensor.nbytes, 4096)))] ^= 1
        path.write_bytes(data)
        identities.add(artifact.identity())
    assert len(identities) == 1 + len(artifact.tensors)


def test_settings_that_differ_are_an_announced_reread_and_the_files_own_are_not(
    model: edge_llama.Model, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = model.artifact.path
    for odd in ({"flash_attention": True}, {"kv_format": "f32"}):
        with edge_llama.open(path, n_ctx=512, **odd) as other, caplog.at_level(logging.WARNING):  # type: ignore[arg-type]
            chat = other.load_chat(saved)
            assert chat.reread_reason is not None
            assert next(iter(odd)) in chat.reread_reason
            assert chat.reread_reason in caplog.text
            answer = chat.send("Thanks", temperature=0, max_tokens=2).result()
            assert answer.timings.cached_tokens == 0
            caplog.clear()
    with edge_llama.open(path, **edge_llama.session_settings(saved)) as same:
        assert same.n_ctx == 4096
        assert same.load_chat(saved).reread_reason is None
        assert decoded(same) == (1, 1)  # llama.cpp counts from 1


def test_another_version_of_the_engine_is_an_announced_reread(
    model: edge_llama.Model, saved: Path, tmp_path: Path
) -> None:
    def older(fields: dict[str, Any]) -> None:
        fields["settings"]["engine"] = "llama.cpp 0.4.0"

    chat = model.load_chat(sealed(tmp_path / "old.session", saved, older))
    assert "engine was llama.cpp 0.4.0 and is llama.cpp" in str(chat.reread_reason)


def test_a_session_longer_than_the_context_is_an_announced_reread(model: edge_llama.Model, saved: Path) -> None:
    with edge_llama.open(model.artifact.path, n_ctx=16) as small:
        chat = small.load_chat(saved)
        assert "don't fit" in str(chat.reread_reason)
        with pytest.raises(edge_llama.ContextFullError):
            chat.send("Thanks")


def test_a_state_survives_the_file_bit_for_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    state = session_file.State(
        rng.integers(0, 2**31 - 1, 50, np.int32), rng.integers(0, 256, 1001, np.uint8), rng.random(7, np.float32)
    )
    saved = session_file.SavedChat("m", "sha256:0", {"n_ctx": 5}, (Message("user", "naïve 🦙\0\n"),), state)
    for each in (saved, replace(saved, state=None), replace(saved, state=replace(state, logits=None))):
        path = tmp_path / "a.session"
        session_file.write(path, each)
        back = session_file.read(path)
        assert replace(back, state=None) == replace(each, state=None)
        for name in ("tokens", "kv", "logits"):
            assert np.array_equal(getattr(back.state, name, None), getattr(each.state, name, None))
