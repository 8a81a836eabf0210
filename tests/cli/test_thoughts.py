"""Thoughts are shown dimmed on a terminal, unless hidden, and are no part of what goes to stdout."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import Terminal

Cli = Callable[..., subprocess.CompletedProcess[str]]
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
QUESTION = "What is the capital of Japan?"


@pytest.fixture
def thinking(tmp_path: Path) -> list[object]:
    """Options that have the model think for three tokens."""
    template = tmp_path / "thinks.jinja"
    template.write_text(THINKS)
    return ["--chat-template", template, "--thinking-budget", "3", "--temperature", "0", "--max-tokens", "20"]


def test_piped_thoughts_are_in_json_alone(called: Cli, thinking: list[object]) -> None:
    answer = json.loads(called("run", QUESTION, *thinking, "--json").stdout)
    assert answer["thinking"]
    assert answer["timings"]["thinking_tokens"] >= 3
    done = called("run", QUESTION, *thinking)
    assert done.stdout.strip() == answer["text"].strip()
    assert answer["thinking"] not in done.stderr
    assert called("run", QUESTION, *thinking[:2], "--thinking-budget", "-1").returncode == 2


@pytest.mark.parametrize("hidden", [[], ["--hide-thinking"]])
def test_a_terminal_shows_thoughts_unless_they_are_hidden(
    hidden: list[str], terminal: Callable[..., Terminal], called: Cli, thinking: list[object]
) -> None:
    answer = json.loads(called("run", QUESTION, *thinking, "--json").stdout)
    chat = terminal("chat", *thinking, *hidden, "--plain", env={"NO_COLOR": ""})
    chat.see(r"(?m)^You:\Z")
    chat.enter(QUESTION)
    shown = chat.see(r"(?m)^You:\Z").removeprefix("Assistant:")
    words = answer["thinking"].split()
    assert all(word in shown for word in answer["text"].split())
    said = " ".join(shown.split()).removeprefix("Thinking: ")
    assert said.startswith(" ".join(words)) == (not hidden)
