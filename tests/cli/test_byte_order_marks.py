"""A byte order mark before a file's text or a prompt is no part of it: Windows' editors and shells write one."""

import io
import sys
from pathlib import Path

import pytest

import edge_llama
from converters.transforms.chat_templates import _read
from edge_llama.cli.run import _read_tools
from edge_llama.cli.terminal.console import messages_of_stdin
from edge_llama.cli.terminal.standard_input import context_of_stdin, prompt_of_stdin
from edge_llama.planning.options import checked, described
from edge_llama.sampling.params import OPTION_TEXTS

MARK = "\ufeff"


def marked(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8-sig")
    return path


def test_in_files_of_options(tmp_path: Path) -> None:
    files = {"json_schema": ('{"enum": [1, 2]}', {"enum": [1, 2]}), "grammar": ('start: "yes"', 'start: "yes"')}
    for name, (text, value) in files.items():
        assert OPTION_TEXTS[name].from_command_line(marked(tmp_path / name, text), "here") == value
    template = described()["chat_template"].text
    assert template
    assert template.from_command_line(marked(tmp_path / "a.jinja", "{{ x }}"), "here") == "{{ x }}"
    assert _read_tools(marked(tmp_path / "tools.json", "[]")) == []
    assert _read(marked(tmp_path / "b.jinja", "{{ x }}")) == "{{ x }}"


def test_in_texts_that_a_program_gives(model: edge_llama.Model) -> None:
    assert checked({"chat_template": MARK + "{{ x }}"}) == {"chat_template": "{{ x }}"}
    answer = model.generate("x", grammar=f'{MARK}start: "yes" | "no"', temperature=0, max_tokens=4).result()
    assert answer.text in ("yes", "no")


@pytest.mark.parametrize("mark", ["", MARK])
def test_on_stdin(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    def pipe(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    for read in (prompt_of_stdin, context_of_stdin):
        pipe(f"{mark}One {MARK}two\n")
        assert read() == f"One {MARK}two\n"
    pipe(f"{mark}One\n{MARK}two\n")
    assert list(messages_of_stdin()) == ["One", f"{MARK}two"]
    pipe(mark)
    with pytest.raises(edge_llama.OptionError, match="the prompt is empty"):
        prompt_of_stdin()
