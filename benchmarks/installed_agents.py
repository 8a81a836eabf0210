"""Coding agents as they are published, each driven headless against ``edge-llama serve``.

    make test-agents                        # each of AGENTS
    make test-agents ARGS="qwen-code"

Each is installed from its registry into ``.cache/agents`` and sees an empty home, a small repository and the server's
address alone. The model is that of ``agent_model.py`` with Llama 3's vocabulary and 65,536 tokens of context: whatever
it is asked, it says ``SAID``, or calls a tool of the agent. Printed: each command, what it said, and the server's own
line for each request. It fails if an agent does, if its output lacks the answer, or if any status is none of success.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_models
from comparison import started
from peers import CACHE, ROOT
from sides import edge_llama_server

sys.path.insert(0, str(ROOT / "tests"))
import agent_model

SAID = "Everything here looks fine."
QUESTION = "What does this repository do? Answer in a sentence."
SAYS, CALLS = "says", "calls"
"""What the model is asked for by: whether it answers in words, or calls a tool."""
KEY = "a-key-of-the-test"
REPOSITORY = {"README.md": "# A clock\n\nPrints the time.\n", "clock.py": "import time\n\nprint(time.ctime())\n"}
SECONDS = 300
"""For an agent's whole run."""
_REQUEST = re.compile(r"\b(GET|POST|HEAD|DELETE) (/\S*) (\d{3})\b")


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent: its package on npm, and how it is told of a server."""

    package: str
    program: str
    arguments: Callable[[str], Sequence[str]]
    """Given the model's name; the question is among them."""
    environment: Callable[[str], Mapping[str, str]] = lambda _url: {}
    """Given the server's address."""
    files: Callable[[str], Mapping[str, str]] = lambda _url: {}
    """What lies in its home, by path."""
    call: str = ""
    """An answer that calls one of its tools; it is asked for a few turns then."""


def _claude(url: str) -> dict[str, str]:
    quiet = ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_AUTOUPDATER", "DISABLE_TELEMETRY")
    window = {"CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(agent_model.N_CTX)}
    return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": KEY, **window, **dict.fromkeys(quiet, "1")}


def _codex(url: str) -> dict[str, str]:
    lines = ('model_provider = "here"', "[model_providers.here]", 'name = "here"', f'base_url = "{url}/v1"')
    return {".codex/config.toml": "\n".join((*lines, 'env_key = "AGENT_KEY"', 'wire_api = "responses"', ""))}


def _opencode(url: str) -> dict[str, str]:
    options = {"baseURL": f"{url}/v1", "apiKey": KEY}
    models = {name: {"limit": {"context": agent_model.N_CTX, "output": 4096}} for name in (SAYS, CALLS)}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "here", "options": options, "models": models}
    settings = {"provider": {"here": provider}, "small_model": "here/says", "autoupdate": False, "share": "disabled"}
    return {".config/opencode/opencode.json": json.dumps(settings)}


AGENTS: dict[str, Agent] = {
    "claude-code": Agent(
        "@anthropic-ai/claude-code@2.1.332",
        "claude",
        lambda model: ("--print", QUESTION, "--model", model, "--max-turns", "3"),
        _claude,
        call='[Bash(command="ls")]',
    ),
    "codex": Agent(
        "@openai/codex@0.171.0",
        "codex",
        lambda model: ("exec", "--model", model, "--skip-git-repo-check", QUESTION),
        lambda _url: {"AGENT_KEY": KEY},
        _codex,
    ),
    "qwen-code": Agent(
        "@qwen-code/qwen-code@0.24.4",
        "qwen",
        lambda model: ("--prompt", QUESTION, "--model", model, "--auth-type", "openai", "--max-session-turns", "3"),
        lambda url: {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": KEY},
        call='[glob(pattern="*")]',
    ),
    "opencode": Agent(
        "opencode-ai@1.18.33",
        "opencode",
        lambda model: ("run", "--model", f"here/{model}", QUESTION),
        lambda _url: {"OPENCODE_DISABLE_MODELS_FETCH": "1"},
        _opencode,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="*", metavar="AGENT", help=f"of {', '.join(AGENTS)}")
    names = parser.parse_args().agents or list(AGENTS)
    if unknown := set(names) - set(AGENTS):
        parser.error(f"no agent {', '.join(sorted(unknown))}: there are {', '.join(AGENTS)}")
    wrong = [problem for name in names for problem in problems(name, AGENTS[name])]
    print(*(wrong or ["every agent got its answers"]), sep="\n")
    sys.exit(1 if wrong else 0)


def problems(name: str, agent: Agent) -> list[str]:
    """What went wrong with an agent."""
    program = installed(name, agent)
    wrong = one_run(agent, program, SAYS, model_file(SAID))
    if agent.call:
        wrong += one_run(agent, program, CALLS, model_file(agent.call))
    return [f"{name}: {problem}" for problem in wrong]


def one_run(agent: Agent, program: Path, model: str, path: Path) -> list[str]:
    """What went wrong when it was asked, with a model that always answers alike."""
    side = edge_llama_server(path, 2, (), n_ctx=agent_model.N_CTX, api_key=KEY, alias=model)
    with started([side]), tempfile.TemporaryDirectory() as scratch:
        home, repository = Path(scratch) / "home", Path(scratch) / "repository"
        lay(home, agent.files(side.url))
        lay(repository, REPOSITORY)
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", "NO_COLOR": "1"}
        command = [str(program), *agent.arguments(model)]
        print(f"$ {program.name} {shlex.join(command[1:])}", flush=True)
        done = subprocess.run(
            command,
            cwd=repository,
            env={**environment, **agent.environment(side.url)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    requests = _REQUEST.findall(side.log())
    print(f"{done.stdout[-1500:]}{done.stderr[-1500:]}\nexit {done.returncode}")
    print(*(f"  {method} {where} {status}" for method, where, status in requests), sep="\n", flush=True)
    return list(judged(model, done, requests))


def judged(
    model: str, done: subprocess.CompletedProcess[str], requests: Sequence[tuple[str, str, str]]
) -> Iterator[str]:
    asked = [status for method, _, status in requests if method == "POST"]
    if wrong := [" ".join(request) for request in requests if request[0] == "POST" and request[2] != "200"]:
        yield f"the server answered {', '.join(wrong)}"
    if model == SAYS and (done.returncode or SAID not in done.stdout):
        yield f"it ended with {done.returncode}, and did not print the answer"
    if model == CALLS and len(asked) < 2:
        yield f"its tool was called, but it asked {len(asked)} times: no result was sent"


def lay(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir()
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")


def installed(name: str, agent: Agent) -> Path:
    """The agent's program, in a folder of its own."""
    folder = CACHE / "agents" / name
    program = folder / "node_modules" / ".bin" / agent.program
    package, _, version = agent.package.rpartition("@")
    if not (done := folder / f"installed-{version}").exists():
        folder.mkdir(parents=True, exist_ok=True)
        # npm runs the scripts that put an agent's binary into place for packages alone that are named.
        wanted = {"private": True, "dependencies": {package: version}, "allowScripts": {package: True}}
        (folder / "package.json").write_text(json.dumps(wanted), "utf-8")
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, stdout=sys.stderr, check=True)
        done.touch()
    print(agent.package)
    return program


def model_file(answer: str) -> Path:
    """A model that always gives this answer, with Llama 3's vocabulary."""
    path = CACHE / f"agent-{hashlib.sha256(answer.encode()).hexdigest()[:8]}.gguf"
    if not path.is_file():
        ranks = (Path(llama_models.__file__).parent / "llama3" / "tokenizer.model").read_bytes()
        agent_model.write(path, ranks=ranks, answer=answer)
    return path


if __name__ == "__main__":
    main()
