"""What a host sees of a model in a process of its own: nothing of its engine, its prints or its signals."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import forks
import pytest
from terminals import EDGE_LLAMA

import converters
import edge_llama
from edge_llama import EngineDiedError
from edge_llama.host.child import HELPER_VARIABLE, RESERVED

SECONDS = 60
OUTSIDE = Path(__file__).resolve().parent.parent / "outside"


def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=SECONDS
    )


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_the_host_loads_no_engine_and_its_main_is_imported_once(
    kind: str, tiny: Path, llama3: Path, tmp_path: Path
) -> None:
    """A script without ``if __name__ == "__main__"``, which multiprocessing would run again in the child."""
    path = tiny
    if kind == "onnx":
        converters.convert(llama3, path := tmp_path / "onnx", to="onnx")
    script = tmp_path / "host.py"
    script.write_text(
        "import sys, edge_llama\n"
        "print('begun')\n"
        "with edge_llama.open(sys.argv[1], isolate=True, n_ctx=256) as model:\n"
        "    print(len(model.chat().send('Hi', max_tokens=3, logprobs=1).result().tokens))\n"
        "print(*sorted({'llama_cpp', 'onnxruntime', 'llguidance', 'multiprocessing'} & set(sys.modules)))\n"
        "print('libllama' in open('/proc/self/maps').read() if sys.platform == 'linux' else False)\n"
    )
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("begun\n3\n\nFalse\n", "")


def test_a_helper_takes_the_interpreters_place(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a frozen program ships: it calls main, and knows nothing of this process."""
    helper = tmp_path / "a helper"
    paths = os.pathsep.join(path for path in sys.path if path)
    helper.write_text(
        f'#!/bin/sh\necho "$@" > "{tmp_path}/seen"\nexport PYTHONPATH="{paths}"\n'
        f'exec "{sys.executable}" -c "from edge_llama.host.child import main; main()" "$@"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv(HELPER_VARIABLE, str(helper))
    with edge_llama.open(tiny, isolate=True, n_ctx=256) as model:
        assert len(model.generate("x", regex=".{200}", max_tokens=3).result().tokens) == 3
    seen = (tmp_path / "seen").read_text().split()
    assert seen[:3] == [RESERVED, "parent", "edge_llama.isolation.child"]  # an empty word between them
    done = subprocess.run([helper], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n"), "started by edge-llama" in done.stderr) == (1, 0, True)


RECITING = """
    import sys
    import edge_llama
    try:
        with edge_llama.open(sys.argv[1], isolate=True) as model:
            print(model.chat(temperature=0).send("What?").result().text)
    except edge_llama.EngineDiedError as error:
        print(error.cause, repr(error.stderr), "open" if "model" not in vars() else "answer")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for Python's path with an engine whose native code prints, and dies of what its file says."""
    about = tmp_path / "dying-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: dying\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[edge_llama.engines]\ndying = dying_engine:ENGINE\n")
    for name in ("reciting_engine.py", "dying_engine.py"):
        (tmp_path / name).symlink_to(OUTSIDE / name)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "said"), [("fine", "fine\n"), ("abort in open", "open"), ("abort in decode", "answer")]
)
def test_an_engine_that_prints_and_dies(text: str, said: str, site: Path) -> None:
    path = site / "a.recite"
    path.write_text(f'{{"text": "{text}"}}')
    done = run(RECITING, path, PYTHONPATH=os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    assert done.returncode == 0, done.stderr
    if text == "fine":
        assert done.stdout == said
    else:
        assert done.stdout.startswith("SIGABRT 'native code prints\\n")
        assert done.stdout.endswith(f"it gives up\\n' {said}\n")


INTERRUPTED = """
    import os, signal, sys, threading, time
    import edge_llama
    model = edge_llama.open(sys.argv[1], isolate=True, n_ctx=100_000)
    ends = {token: -1e4 for token in range(model.tokenizer.n_vocab) if model.tokenizer.is_end(token)}
    chat = model.chat(temperature=0, logit_bias=ends)  # nothing but the interrupt ends the answer
    generation = chat.send("Hi")
    next(generation)
    pid = model.worker_pid

    def press():
        while time.sleep(0.5) or not generation.is_cancelled:
            os.killpg(0, signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    while not generation.is_cancelled:  # an interrupt may come before the wait begins
        try:
            generation.result()
        except KeyboardInterrupt:
            pass
    print(generation.result().finish_reason)
    print(chat.send("And?", max_tokens=2).result().finish_reason, model.worker_pid == pid)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a process group")
def test_a_terminals_interrupt_is_the_hosts_alone(tiny: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), tiny]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, check=False, timeout=SECONDS)
    assert done.stdout == "cancelled\nlength True\n", done.stderr


FORKED = """
    import os, sys, warnings
    warnings.simplefilter("ignore")
    import edge_llama
    model = edge_llama.open(sys.argv[1], isolate=True, n_ctx=256)
    running = model.generate("Once upon a time", regex=".*", max_tokens=200)
    chat = model.chat()
    next(running)
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        reasons = running.result().finish_reason, chat.send("x", max_tokens=2).result().finish_reason
        print(set(reasons) <= {"stop", "length"})
        sys.exit(code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_fork_of_the_host_gets_an_error_and_harms_nothing(tiny: Path) -> None:
    done = run(textwrap.dedent(FORKED) + forks.IN_THE_FORK, tiny)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_the_command_line_isolates(tiny: Path) -> None:
    arguments = [EDGE_LLAMA, "run", tiny, "Hi", "--isolate", "--max-tokens", "4", "--seed", "3", "--logprobs", "1"]
    done = subprocess.run([*arguments, "--n-ctx", "256"], capture_output=True, text=True, check=False)
    plain = [each for each in arguments if each != "--isolate"]
    expected = subprocess.run([*plain, "--n-ctx", "256"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, expected.stderr)


def test_what_is_told_of_a_death() -> None:
    error = EngineDiedError("SIGSEGV", "one\ntwo \n")
    assert (error.cause, error.stderr, error.exit_code) == ("SIGSEGV", "one\ntwo \n", 1)
    assert str(error).startswith("the model's process died: SIGSEGV: two; the next call starts another")
