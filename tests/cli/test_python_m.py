"""``python -m edge_llama``: the same command line."""

import os
import subprocess
import sys

import pytest
from engines import CAPITAL
from terminals import EDGE_LLAMA


def module(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_llama", *arguments]
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def test_it_answers(environment: dict[str, str]) -> None:
    done = module("run", CAPITAL, "--temperature", "0", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "The capital of Japan is Tokyo.\n", "")


def test_it_calls_itself_by_the_commands_name(environment: dict[str, str]) -> None:
    assert module("--version", env=environment).stdout.startswith("edge-llama ")
    assert "Usage: edge-llama run " in module("run", "--help", env=environment).stdout
    assert "Usage: edge-llama " in module("--help", env=environment).stdout
    refused = module("run", "Hi", "--n-ctxx", "5", env=environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith("edge-llama: ")


@pytest.mark.skipif(os.name == "nt", reason="completion of bash")
def test_completion_is_that_of_the_command(environment: dict[str, str]) -> None:
    asking = {"_EDGE_LLAMA_COMPLETE": "complete_bash", "COMP_WORDS": "edge-llama devi", "COMP_CWORD": "1"}
    around = {**environment, **asking}
    script = subprocess.run([EDGE_LLAMA], env=around, capture_output=True, text=True, check=False)
    done = module(env=around)
    assert done.stdout == script.stdout
    assert "devices" in done.stdout
