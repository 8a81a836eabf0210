"""What frozen programs do: each check runs one as it is shipped, with nothing on the PATH, and says what came of it."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from engine_source import ROOT

CAPITAL = "What is the capital of Japan?"
DIGITS = ROOT / "docs" / "digits.png"
SECONDS = 300


@dataclass(frozen=True, slots=True)
class Inputs:
    """Models that an interpreter has written, and a folder for what the programs write."""

    folder: Path
    foreign: Path
    """A GGUF file of another program, which a child meets first."""
    talk: Path
    deadly: Path
    """A GGUF file that ends the process of who loads it."""
    checkpoint: Path
    expected: Path
    """That checkpoint as q4_k_m, by the same code in an interpreter."""
    digits: Path
    """A checkpoint of a small Llama 4."""

    @property
    def onnx(self) -> Path:
        """What the frozen program converts, and the others open."""
        return self.folder / "onnx"

    @property
    def bundle(self) -> Path:
        """The same, with a vision tower for ONNX Runtime."""
        return self.folder / "bündel"


@dataclass(frozen=True, slots=True)
class Program:
    """A frozen program in its folder."""

    path: Path
    cache: Path

    def start(self, *arguments: object, **more: str) -> "subprocess.Popen[str]":
        """In a folder and a home without anything, and no program on the PATH."""
        return subprocess.Popen(
            [str(self.path), *map(str, arguments)],
            cwd=self.cache,
            env=self._environment() | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: object, code: int = 0, **more: str) -> tuple[str, str]:
        """What it printed to stdout and stderr. AssertionError unless it ends with ``code``."""
        with self.start(*arguments, **more) as process:
            try:
                out, err = process.communicate(timeout=SECONDS)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == code, f"ended with {process.returncode}: {out[-500:]}{err[-1500:]}"
        assert "Traceback" not in err, err
        return out.strip(), err.strip()

    def _environment(self) -> dict[str, str]:
        folders = {"HOME": str(self.cache), "EDGE_LLAMA_CACHE": str(self.cache / "cache")}
        return folders | {"PATH": "", "LANG": "C.UTF-8", "QT_QPA_PLATFORM": "offscreen"}

    def findings(self) -> set[str]:
        """What children found out, by kinds."""
        folder = self.cache / "cache"
        return {each.name for each in folder.iterdir() if each.is_dir() and any(each.iterdir())}


Check = Callable[[Program, Inputs], str]


def starts(program: Program, _inputs: Inputs) -> str:
    """The command line with every verb."""
    version, _ = program.run("--version")
    out, _ = program.run("--help")
    verbs = {path.stem for path in (ROOT / "edge_llama" / "cli").glob("*.py")} & set(out.split())
    assert {"chat", "run", "serve", "convert", "embed", "verify", "models"} <= verbs, verbs
    return f"{version}, {len(verbs)} verbs"


def converts(program: Program, inputs: Inputs) -> str:
    """All kinds of outputs; a GGUF file is the interpreter's, byte for byte."""
    output = inputs.folder / "q4_k_m.gguf"
    program.run("convert", inputs.checkpoint, output, "--force")
    assert output.read_bytes() == inputs.expected.read_bytes(), "other bytes than an interpreter gives"
    program.run("verify", output)
    program.run("convert", inputs.talk, inputs.onnx, "--to", "onnx", "--quant", "f32", "--force")
    program.run("convert", inputs.digits, inputs.bundle, "--quant", "q8_0", "--force")
    return "GGUF (the interpreter's bytes), ONNX, a bundle"


def compiles(program: Program, inputs: Inputs) -> str:
    """Kernels by numba, compiled within the frozen program."""
    output = inputs.folder / "compiled.gguf"
    program.run("convert", inputs.checkpoint, output, "--force", EDGE_LLAMA_KERNELS="compiled")
    assert output.read_bytes() == inputs.expected.read_bytes(), "other bytes than an interpreter gives"
    assert "kernels" in program.findings()
    return "the same bytes by compiled kernels"


def answers_gguf(program: Program, inputs: Inputs) -> str:
    """A file of another program: engine and file are tried in a child first."""
    out, _ = program.run("run", inputs.foreign, CAPITAL, "--temperature", 0)
    assert "Tokyo" in out, out
    tried = {"engine-health", "first-run"} & program.findings()
    assert len(tried) == 2, f"no child has tried it: {program.findings()}"
    return out


def answers_onnx(program: Program, inputs: Inputs) -> str:
    """ONNX Runtime, with the tokenizer that it needs."""
    out, _ = program.run("run", inputs.onnx, CAPITAL, "--temperature", 0)
    expected, _ = program.run("run", inputs.talk, CAPITAL, "--temperature", 0)
    assert out == expected, (out, expected)
    return out


def sees(program: Program, inputs: Inputs) -> str:
    """Two towers on two engines."""
    out, _ = program.run("run", inputs.bundle, "Which digits are these?", "--image", DIGITS, "--temperature", 0)
    assert out == "left 5, right 4", out
    return out


def refuses(program: Program, inputs: Inputs) -> str:
    """A file that kills its child is a line and exit code 2, isolated or not."""
    for more in ((), ("--isolate",)):
        _, err = program.run("run", inputs.deadly, "Hi", *more, code=2)
        assert "a trial run in a process of its own died of signal 6" in err, err
        assert "\n" not in err, err
    return "exit code 2: a trial run in a process of its own died of signal 6"


def isolates(program: Program, inputs: Inputs) -> str:
    """The model's process is the program itself."""
    plain, _ = program.run("run", inputs.talk, CAPITAL, "--temperature", 0)
    found, _ = program.run("run", inputs.talk, CAPITAL, "--temperature", 0, "--isolate")
    assert found == plain, (found, plain)
    return found


def serves(program: Program, inputs: Inputs) -> str:
    """HTTP, the page, and a process for each model: no other program than this one."""
    with program.start("serve", inputs.talk, "--port", 18765, "--quiet") as process:
        try:
            address = "http://127.0.0.1:18765"
            _until_there(address, process)
            page = urllib.request.urlopen(f"{address}/", timeout=30).read().decode()
            assert "<html" in page
            fields = {"model": "small_talk", "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0}
            request = urllib.request.Request(
                f"{address}/v1/chat/completions", json.dumps(fields).encode(), {"Content-Type": "application/json"}
            )
            answer = json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["message"]["content"]
            children = psutil.Process(process.pid).children(recursive=True)
            assert children
            others = {child.exe() for child in children} - {str(program.path)}
            assert not others, f"other programs run: {others}"
            process.terminate()
            process.wait(30)
            assert not psutil.wait_procs(children, 10)[1]
        finally:
            process.kill()
    return f"the page, and: {answer}"


def _until_there(address: str, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).read()
        except OSError:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < end, "it does not answer"
            time.sleep(0.1)
        else:
            return


def window_opens(program: Program, inputs: Inputs) -> str:
    """GGUF, ONNX and a bundle in the window."""
    for model in (inputs.foreign, inputs.onnx, inputs.bundle):
        out, _ = program.run(model, "--ask", CAPITAL)
        assert out, model
    assert {"engine-health", "first-run"} <= program.findings(), program.findings()
    return "GGUF, ONNX and a bundle answer"


def window_chats(program: Program, inputs: Inputs) -> str:
    """A GGUF file in the window."""
    out, _ = program.run(inputs.foreign, "--ask", CAPITAL)
    assert out
    assert {"engine-health", "first-run"} <= program.findings(), program.findings()
    return "GGUF answers"


def window_refuses(program: Program, inputs: Inputs) -> str:
    """A file that kills its child, in the window."""
    _, err = program.run(inputs.deadly, "--ask", "Hi", code=2)
    assert "a trial run in a process of its own died of signal 6" in err, err
    return "exit code 2: a trial run in a process of its own died of signal 6"


CHECKS: dict[str, tuple[Check, ...]] = {
    "edge-llama": (
        starts,
        converts,
        compiles,
        answers_gguf,
        answers_onnx,
        sees,
        refuses,
        isolates,
        serves,
    ),
    "desktop": (window_opens, window_refuses),
    "smallest": (window_chats, window_refuses),
}
"""By program; the first converts what others open."""


def moved(folder: Path, place: Path, name: str) -> Program:
    """A copy of the folder at ``place``, as somebody would have it who was given it."""
    target = place / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, symlinks=True)
    (program,) = [path for path in target.iterdir() if path.is_file() and os.access(path, os.X_OK)]
    return Program(program, Path(tempfile.mkdtemp(prefix="home ", dir=place)))
