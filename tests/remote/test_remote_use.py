"""Addresses, keys, who is asked, what is refused by name, and what happens when a server's process dies."""

import asyncio
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from forks import IN_THE_FORK
from scripted_server import DONE, Scripted, as_json, events, said, scripted
from serving import Served
from talk import ANSWER, QUESTION, STORY, TEMPLATE, talking

import edge_llama
from edge_llama import CopyError, InputError, Model, OptionError, RemoteError, SessionError
from edge_llama.backends.remote import address, client
from edge_llama.backends.remote.address import KEY_VARIABLE, key_of, parsed
from edge_llama.media.images import Image
from edge_llama.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parent.parent.parent
SERVE = "from edge_llama.cli import main; main()"
KEY = "sk-very-secret-1234567890"
SECONDS = 60


def test_addresses() -> None:
    for given, url in {
        "http://127.0.0.1:8000/v1": "http://127.0.0.1:8000/v1",
        "HTTPS://Fleet.Example/v1/": "https://fleet.example/v1",
        "http://localhost:80": "http://localhost:80/v1",
        "http://[::1]:8000/api/v1": "http://[::1]:8000/api/v1",
    }.items():
        assert str(parsed(given)) == url
    assert parsed("http://h/api/v1").root == "http://h/api"
    assert parsed("http://h/other").root == "http://h/other"
    assert [parsed(f"http://{host}").is_here for host in ("127.0.0.2", "[::1]", "localhost", "10.0.0.1", "h")] == [
        *[True] * 3,
        *[False] * 2,
    ]


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{KEY}@host/v1",
        f"http://{KEY}@host/v1",
        f"http://host/v1?key={KEY}",
        f"http://host/v1#{KEY}",
        f"http://host:{KEY}/v1",
        f"http:///{KEY}",
        f"http://ho st/{KEY}",
        f"http://host\\{KEY}",
        f"http://[{KEY}/v1",
        f"http://host/\n{KEY}",
    ],
)
def test_a_url_that_may_hold_a_secret_is_refused_without_showing_it(url: str, small_talk: Path) -> None:
    with pytest.raises(OptionError) as caught:
        edge_llama.open(url, tokenizer=small_talk)
    assert KEY not in str(caught.value)
    assert caught.value.remedy
    if "@" in url or "?" in url:
        assert KEY_VARIABLE in str(caught.value)


def test_the_key_is_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert key_of(None) is None
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("MINE", f" {KEY}2\n")
    assert key_of(None) == KEY
    assert key_of("MINE") == f"{KEY}2"
    monkeypatch.setenv("ODD", "schlüssel")
    for wrong in (KEY, "NOT_SET_AT_ALL", "ODD"):
        with pytest.raises(OptionError) as caught:
            key_of(wrong)
        assert wrong not in str(caught.value)
        assert "schlüssel" not in str(caught.value)


def test_a_server_that_wants_a_key_gets_it_and_nobody_else_sees_it(
    small_talk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with talking(small_talk, settings=ServerSettings(api_key=KEY)) as served:
        url = f"{served.url}/v1"
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        with pytest.raises(OptionError, match=rf"refuses the key, or asks for one .*{KEY_VARIABLE}"):
            edge_llama.open(url, tokenizer=small_talk)
        monkeypatch.setenv(KEY_VARIABLE, "wrong")
        with pytest.raises(OptionError, match="refuses the key"):
            edge_llama.open(url, tokenizer=small_talk)
        monkeypatch.setenv("OF_THE_FLEET", KEY)
        options: dict[str, Any] = {"tokenizer": small_talk, "chat_template": TEMPLATE}
        with edge_llama.open(url, api_key_variable="OF_THE_FLEET", **options) as model:
            assert model.chat().send(QUESTION, temperature=0).result().text == ANSWER
            shown = f"{model!r} {vars(model)} {model.artifact!r} {vars(model._stream)} {vars(model._loop)}"  # type: ignore[attr-defined] # looks for the key
    assert KEY not in shown
    assert KEY not in caplog.text


def test_a_server_that_repeats_the_key_does_not_get_it_into_an_error(
    script: Scripted, small_talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    script.places["/v1/models"] = as_json(401, {"error": {"message": f"Incorrect API key provided: {KEY}."}})
    with pytest.raises(OptionError, match=r"Incorrect API key provided: \*\*\*"):
        edge_llama.open(script.url, tokenizer=small_talk)
    assert script.requests[0][2]["Authorization"] == f"Bearer {KEY}"


def test_a_key_that_goes_unencrypted_into_a_network_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for url, count in {"http://127.0.0.1/v1": 0, "https://h/v1": 0, "http://10.0.0.1/v1": 1}.items():
        caplog.clear()
        asyncio.run(client.Client(parsed(url), KEY).close())
        assert caplog.text.count("unencrypted") == count
        assert KEY not in caplog.text


def test_one_connection_serves_one_answer_after_the_other(remote: Model, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "httpcore")
    for _ in range(5):
        assert remote.chat().send(QUESTION, temperature=0).result().text == ANSWER
        assert len(remote.chat().send(STORY, temperature=0, max_tokens=8).result().tokens) == 8
    assert caplog.text.count("connect_tcp.started") <= 1
    for _ in range(5):
        remote.chat().send(STORY, temperature=0).cancel()
    assert remote.chat().send(QUESTION, temperature=0).result().text == ANSWER


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl's program")
def test_a_certificate_is_checked(
    small_talk: Path, local: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, issued = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(issued)]
    subject = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    with scripted(local.tokenizer, certificate=(issued, key)) as script:
        with pytest.raises(RemoteError, match=r"its certificate is not trusted: .*; name the file .* in SSL_CERT_FILE"):
            edge_llama.open(script.url, tokenizer=small_talk)
        assert script.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(issued))
        script.replies = [events(said("x", [5]), said("", [], "stop"), DONE)]
        with edge_llama.open(script.url, tokenizer=small_talk, chat_template=TEMPLATE) as model:
            assert model.chat().send(QUESTION).result().tokens == (5,)
            assert model.location == script.url


PROGRAM = """
import sys
asked = set()
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        asked.add(str(arguments[1] if event == "socket.connect" else arguments[:2]))
sys.addaudithook(hook)
import edge_llama
with edge_llama.open(sys.argv[1], tokenizer=sys.argv[2]) as model:
    print(model.chat().send("What is the capital of Japan?", temperature=0).result().text)
print(*sorted(asked), sep="\\n")
"""


def test_only_the_urls_own_address_is_asked_whatever_the_environment_says(talk: Served, small_talk: Path) -> None:
    port = talk.url.rpartition(":")[2]
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://192.0.2.1:9")
    environment = {**os.environ, **proxies, "PYTHONPATH": str(ROOT)}
    environment.pop("NO_PROXY", None)
    command = [sys.executable, "-c", PROGRAM, f"{talk.url}/v1", str(small_talk)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    answer, *asked = done.stdout.splitlines()
    assert answer == ANSWER
    assert asked
    assert all("127.0.0.1" in each and port in each for each in asked), asked


def test_what_a_server_can_not_do_is_refused_by_name(remote: Model, tmp_path: Path) -> None:
    chat = remote.chat()
    image = Image.open(ROOT / "docs" / "digits.png")
    refused: dict[str, Any] = {
        "no pictures can be sent": lambda: chat.send("x", images=[image]),
        "no pictures can be sent to": lambda: remote.image_tokens(image),
        "can't be embedded": lambda: remote.embed(["x"]),
        "texts can't be embedded": remote.pooling,
        "a session file holds a KV cache": lambda: chat.save(tmp_path / "x.session"),
        "session file holds a KV cache, which is": lambda: remote.load_chat(tmp_path / "x.session"),
        "logits_processor, a Python function": lambda: chat.send("x", logits_processor=lambda _ids, logits: logits),
        "tool_choice that makes calls be": lambda: chat.send("x", tools=[TOOL], tool_choice="required"),
    }
    for message, ask in refused.items():
        with pytest.raises(InputError, match=message) as caught:
            ask()
        assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SessionError):
        chat.save(tmp_path / "x.session")


TOOL = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": {}}}


def test_options_of_models_that_run_here_are_refused_and_the_other_way_round(small_talk: Path) -> None:
    for name, value in {"device": "cpu", "threads": 1, "kv_format": "f16", "cache_dir": "x", "vision": "x"}.items():
        with pytest.raises(OptionError, match=f"{name} is for models that run here"):
            edge_llama.open("http://127.0.0.1:1/v1", tokenizer=small_talk, **{name: value})  # type: ignore[arg-type] # by its name
    for name in ("tokenizer", "remote_model", "api_key_variable"):
        for isolate in (False, True):
            with pytest.raises(OptionError, match=f"{name} is for a model that a server runs"):
                edge_llama.open(small_talk, isolate=isolate, **{name: "x"})  # type: ignore[arg-type] # by its name
    with pytest.raises(OptionError, match="isolate is for models that run here"):
        edge_llama.open("http://127.0.0.1:1/v1", tokenizer=small_talk, isolate=True)
    with pytest.raises(OptionError, match="which tokenizer does the model on the server have"):
        edge_llama.open("http://127.0.0.1:1/v1")
    with pytest.raises(OptionError, match="model is the name of a model on a server"):
        edge_llama.open(small_talk, model="x")
    with pytest.raises(edge_llama.ArtifactError, match="no such file"):
        edge_llama.open("http://127.0.0.1:1/v1", tokenizer=small_talk / "x")
    with edge_llama.open(model=small_talk, n_ctx=64) as model:
        assert model.artifact.name


def test_without_httpx_it_says_what_to_install(small_talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    for name in ("client", "served", "same_vocabulary"):
        monkeypatch.delitem(sys.modules, f"edge_llama.backends.remote.{name}", raising=False)
    with pytest.raises(OptionError, match=r'needs httpx, .*; pip install "edge-llama\[remote\]"'):
        edge_llama.open("http://127.0.0.1:1/v1", tokenizer=small_talk)


def test_the_variable_may_name_a_server(talk: Served, small_talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_LLAMA_MODEL", f"{talk.url}/v1")
    with edge_llama.open(tokenizer=small_talk, chat_template=TEMPLATE) as model:
        assert model.location == f"{talk.url}/v1"


FORK = """
import os, sys, edge_llama
model = edge_llama.open(sys.argv[1], tokenizer=sys.argv[2])
chat = model.chat()
running = model.chat().send("Tell a very long story.", temperature=0)
next(running)
if os.fork() == 0:
    {child}
_, status = os.wait()
running.close()
print(os.waitstatus_to_exitcode(status), chat.send("What is the capital of Japan?", temperature=0).result().text)
model.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are POSIX")
def test_a_fork_is_told_that_nobody_would_work_for_it(talk: Served, small_talk: Path) -> None:
    code = FORK.replace("{child}", IN_THE_FORK.strip().replace("\n", "\n    "))
    command = [sys.executable, "-c", code, f"{talk.url}/v1", str(small_talk)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == f"0 {ANSWER}\n", done.stderr


@contextmanager
def process(model: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """``edge-llama serve`` in a process of its own, that serves."""
    port = port or _free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-c",
        SERVE,
        "serve",
        str(model),
        "--port",
        str(port),
        "--n-ctx",
        "1024",
        "--threads",
        "1",
    ]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + SECONDS
        while not _serves(url):
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield running, f"{url}/v1"
    finally:
        _kill(running)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _serves(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _kill(running: subprocess.Popen[bytes]) -> None:
    """With its model's process."""
    if running.poll() is None:
        children = psutil.Process(running.pid).children(recursive=True)
        for each in (running, *children):  # it first: else it tells of their deaths
            each.send_signal(signal.SIGKILL)
    running.wait(SECONDS)


def test_a_server_that_is_killed_amid_an_answer_is_a_typed_error_and_works_when_it_is_back(
    small_talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_DELAYS", (0.1, 0.1, 0.1))
    with process(small_talk) as (running, url):
        port = int(url.removesuffix("/v1").rpartition(":")[2])
        with edge_llama.open(url, tokenizer=small_talk, chat_template=TEMPLATE) as model:
            chat = model.chat(temperature=0)
            assert chat.send(QUESTION).result().text == ANSWER
            threads = threading.active_count()
            generations = [model.chat().send(STORY, temperature=0) for _ in range(3)]
            for generation in generations:
                next(generation)
            assert threading.active_count() == threads
            _kill(running)
            for generation in generations:
                with pytest.raises(RemoteError, match="the connection broke") as caught:
                    generation.result()
                assert caught.value.status is None
            with pytest.raises(RemoteError, match="can't be reached"):
                chat.send(QUESTION).result()
            assert len(chat.messages) == 2
            with process(small_talk, port):
                assert chat.send(QUESTION).result().text == ANSWER


def test_ctrl_c_closes_the_connection_at_once(script: Scripted, small_talk: Path) -> None:
    """A person presses it while a server is silent: the verb ends as with any model."""
    silent = threading.Event()
    script.replies = [events(said("x", [5]), said("y", [6]), DONE, waits_for=silent)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVE, "run", script.url, "Hi", "--tokenizer", str(small_talk)]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + SECONDS
        while not script.completions and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.3)
        started = time.monotonic()
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=SECONDS)
        assert running.returncode == 130
        assert time.monotonic() - started < 10
    finally:
        silent.set()
        _kill(running)


def test_an_error_crosses_as_itself() -> None:
    error = RemoteError("http://h/v1", "failed", status=503, remedy="wait")
    again = edge_llama.errors.error_from_json(json.loads(json.dumps(edge_llama.errors.error_to_json(error))))
    assert (type(again), str(again), vars(again)) == (RemoteError, str(error), vars(error))


def test_the_usual_variable_is_the_documented_one() -> None:
    assert address.KEY_VARIABLE == "EDGE_LLAMA_REMOTE_API_KEY"


def test_it_can_be_pickled_no_more_than_any_other_model(remote: Model) -> None:
    for thing in (remote, remote.chat(), remote.generate("x", max_tokens=1)):
        with pytest.raises(CopyError, match="can't be pickled or copied"):
            pickle.dumps(thing)
