"""``edge-llama run`` and what all verbs share."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import architectures
import field_sweep
import pytest
from engines import CAPITAL
from ggufs import rewritten
from terminals import EDGE_LLAMA

from edge_llama.files.gguf import read_header, string

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_the_answer_and_nothing_else_goes_to_stdout(cli: Cli) -> None:
    done = cli("run", CAPITAL, "--temperature", 0)
    assert (done.returncode, done.stdout) == (0, "The capital of Japan is Tokyo.\n")
    assert done.stderr == ""


def test_two_words_are_a_model_and_a_prompt(cli: Cli, converted: Path) -> None:
    assert "Tokyo" in cli("run", converted, CAPITAL, "--temperature", 0).stdout


def test_the_prompt_may_come_from_stdin(cli: Cli) -> None:
    assert "Tokyo" in cli("run", "-", "--temperature", 0, stdin=CAPITAL).stdout


def test_json_is_one_object_with_everything(cli: Cli) -> None:
    answer = json.loads(cli("run", CAPITAL, "--temperature", 0, "--json").stdout)
    assert "Tokyo" in answer["text"]
    assert answer["finish_reason"] == "stop"
    assert len(answer["tokens"]) == answer["timings"]["generated_tokens"]


def test_raw_continues_the_text(cli: Cli) -> None:
    done = cli("run", "--raw", "1 2 3 4 5 6 7", "--temperature", 0, "--max-tokens", 6)
    assert "8" in done.stdout
    assert "--max-tokens is reached" in done.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"type": "function", "function": {"name": "weather", "parameters": {}}}]))
    return path


def test_tool_calls_are_lines_of_json(cli: Cli, tool_llama: Path, tools: Path) -> None:
    """The text and the calls of a model that was trained to give these; see ``trained.py``."""
    arguments = ("run", tool_llama, "--tools", tools, "--temperature", 0, "--max-tokens", 120, "--n-ctx", 512)
    lines = cli(*arguments, "Rome, Bonn?").stdout.splitlines()
    assert lines[0] == "Ok. "
    assert [json.loads(line)["arguments"] for line in lines[1:]] == [{"city": "Rome"}, {"city": "Bonn"}]
    lines = cli(*arguments, "Paris?").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["weather"]
    answer = json.loads(cli(*arguments, "Paris?", "--json").stdout)
    assert (answer["text"], answer["finish_reason"], answer["notes"]) == ("", "tool_calls", [])
    assert [(call["name"], call["arguments"]) for call in answer["tool_calls"]] == [("weather", {"city": "Paris"})]
    wrong = cli(*arguments, "Wrong?")
    assert wrong.stdout == '{"name": "weather", "parameters": 5}\n'
    assert "[no tool call: " in wrong.stderr


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file"),
        ("[", "is no JSON"),
        ("\xff", "is no JSON"),
        ("{}", "is dict, expected a list"),
        ("[{}]", "tool 0: name is NoneType"),
        ('[{"name": "f"}]', "does not show tools to the model"),
    ],
)
def test_tools_that_cannot_be_are_one_line(called: Cli, tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    done = called("run", "x", "--tools", path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert problem in done.stderr


def test_a_system_message_counts(cli: Cli) -> None:
    plain = cli("run", "Who are you?", "--temperature", 0, "--max-tokens", 30).stdout
    pirate = cli(
        "run", "Who are you?", "--system", "You are Captain Hook.", "--temperature", 0, "--max-tokens", 30
    ).stdout
    assert plain != pirate


def test_an_answer_by_a_schema_a_regex_or_a_grammar(cli: Cli, converted: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}')
    grammar = tmp_path / "answer.lark"
    grammar.write_text('start: "yes" | "no"')
    common = ("--temperature", 1, "--seed", 1, "--max-tokens", 60)
    assert json.loads(cli("run", converted, "Say something.", "--json-schema", schema, *common).stdout)["n"] in (1, 2)
    assert cli("run", "Say something.", "--grammar", grammar, *common).stdout in ("yes\n", "no\n")
    assert cli("run", "Say something.", "--regex", "[xy]{3}", *common).stdout.strip("xy") == "\n"


def test_logprobs_go_to_stderr_or_into_json(cli: Cli) -> None:
    arguments = ("run", "--raw", "The capital of Japan is", "--temperature", 0, "--max-tokens", 2, "--logprobs", 2)
    done = cli(*arguments)
    assert done.stdout == " Tokyo.\n"
    assert done.stderr.splitlines()[0].startswith("' Tokyo' ")
    answer = json.loads(cli(*arguments, "--json").stdout)
    assert [entry["token_id"] for entry in answer["logprobs"]] == answer["tokens"]
    assert [entry["text"] for entry in answer["logprobs"]] == [" Tokyo", "."]
    assert all(len(entry["top"]) == 2 for entry in answer["logprobs"])


def test_biases_and_penalties_reach_the_sampler(cli: Cli) -> None:
    common = ("run", "--raw", "The capital of Japan is", "--temperature", 0, "--json", "--max-tokens")
    plain = json.loads(cli(*common, 1).stdout)
    assert "logprobs" not in plain
    other = json.loads(cli(*common, 1, "--logit-bias", f"{plain['tokens'][0]}=-10000").stdout)
    assert other["tokens"] != plain["tokens"]
    penalties = ("--frequency-penalty", 100, "--presence-penalty", 100, "--logit-bias", "2=-10000")  # 2 ends the text
    assert len(set(json.loads(cli(*common, 20, *penalties).stdout)["tokens"])) == 20


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["run"], "", "Missing argument"),
        (["walk"], "", "No such command"),
        (["run", "a", "b", "c"], "", "3 arguments"),
        (["run", "x", "--temperature", "-1"], "", "temperature is -1.0"),
        (["run", "x", "--temperature", "warm"], "", "--temperature"),
        (["run", "x", "--seed", "-1"], "", "seed is -1"),
        (["run", "x", "--stop", ""], "", "a stop string is empty"),
        (["run", "x", "--n-ctx", "999999"], "", "n_ctx is 999999"),
        (["run", "x", "--threads", "0"], "", "threads is 0"),
        (["run", "x", "--flash-attn", "maybe"], "", "on or off"),
        (["run", "x", "--raw", "--system", "y"], "", "--system has no place"),
        (["run", "x", "--raw", "--tools", "y"], "", "--tools has no place"),
        (["run", "x", "--chat-template", "nothing.jinja"], "", "cannot be read"),
        (["run", "nothing.gguf", "x"], "", "no such file"),
        (["run", "x", "--logit-bias", "a=3"], "", "--logit-bias a=3: expected ID=VALUE"),
        (["run", "x", "--logit-bias", "999999=3"], "", "there is no token 999999"),
        (["run", "x", "--json-schema", "nothing.json"], "", "nothing.json: cannot be read"),
        (["run", "x", "--json-schema", sys.executable], "", "cannot be read"),
        (["run", "x", "--json-schema", __file__], "", "not JSON"),
        (["run", "x", "--grammar", "nothing.lark"], "", "cannot be read"),
        (["run", "x", "--grammar", __file__], "", "grammar: "),
        (["run", "x", "--regex", "("], "", "regex: invalid regex"),
        (["run", "x", "--regex", "a", "--grammar", __file__], "", "regex and grammar were given"),
        (["run", "x", "--logprobs", "21"], "", "logprobs is 21"),
        (["run", "x", "--presence-penalty", "nan"], "", "presence_penalty is nan"),
        (["run", "-"], b"abc\xff", "byte 3 (0xff) is not UTF-8"),
        (["chat"], b"ok\xfe\n", "byte 2 (0xfe) is not UTF-8"),
        (["run", "word " * 9000], "", "the prompt needs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    called: Cli, arguments: list[str], stdin: str | bytes, expected: str
) -> None:
    done = called(*arguments, stdin=stdin)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("edge-llama: ")]
    assert len(errors) == 1


def test_a_file_that_is_no_model_is_one_line_and_exit_code_2(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + bytes(64))
    done = cli("run", path, "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr


def test_a_model_without_a_template_says_what_to_pass_and_raw_works(cli: Cli, small_talk: Path, tmp_path: Path) -> None:
    bare = rewritten(small_talk, tmp_path / "bare.gguf", fields={"tokenizer.chat_template": None})
    for verb in ("run", "chat"):
        done = cli(verb, bare, *(["Hello"] if verb == "run" else []), stdin="Hello")
        assert done.returncode == 2
        assert "pass one (--chat-template FILE)" in done.stderr
    done = cli("run", bare, "Hello", "--raw", "--temperature", 0, "--max-tokens", 3)
    assert (done.returncode, bool(done.stdout.strip())) == (0, True)


@pytest.mark.parametrize(
    ("source", "expected"), [("{% for %}", "not valid"), ("{{ x | nonsense }}", "nonsense"), ("{{ 1 / 0 }}", "failed")]
)
def test_a_template_file_that_is_none_is_one_line_and_exit_code_2(
    called: Cli, tmp_path: Path, source: str, expected: str
) -> None:
    (tmp_path / "bad.jinja").write_text(source)
    done = called("run", "x", "--chat-template", tmp_path / "bad.jinja")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert expected in done.stderr


def test_a_model_that_ends_the_engines_process_is_one_line_and_exit_code_2(
    cli: Cli, packaged: Path, tmp_path: Path
) -> None:
    vocabulary = read_header(field_sweep.small(packaged, tmp_path / "small.gguf"))
    done = cli("run", architectures.deadly(tmp_path / "bad.gguf", vocabulary), "Hello")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "died of signal 6" in done.stderr


@pytest.mark.parametrize("verb", ["chat", "run", "convert", "inspect"])
def test_help_has_an_example(cli: Cli, verb: str) -> None:
    done = cli(verb, "--help")
    assert done.returncode == 0
    assert f"Example: edge-llama {verb}" in done.stdout


def test_a_bare_call_prints_help(cli: Cli) -> None:
    done = cli()
    assert done.returncode == 2
    assert "Commands:" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("redirection", "expected", "said"),
    [
        ("run - --quiet <&-", 2, "the prompt is empty"),
        ("walk", 2, "No such command"),
        ("run x --temperature -1", 2, "temperature is -1.0"),
        ("inspect >&-", 0, ""),
        ("inspect > /dev/full", 1, "No space left on device"),
        (f"run {'x' * 300} hello", 2, "File name too long"),
        ("run '~nobody-has-this-name/x.gguf' hello", 2, "home is not known"),
    ],
)
def test_odd_streams_and_names_are_one_line_and_no_traceback(
    environment: dict[str, str], redirection: str, expected: int, said: str
) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec '{EDGE_LLAMA}' {redirection}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == expected, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") <= 1


def test_text_that_the_terminals_encoding_lacks_is_escaped(environment: dict[str, str]) -> None:
    command = [EDGE_LLAMA, "run", "🦙 日本 🦙 日本 🦙 日本 🦙", "--raw", "--temperature", "0", "--max-tokens", "12"]
    env = environment | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_files_own_words_cannot_command_the_terminal(cli: Cli, small_talk: Path, tmp_path: Path) -> None:
    evil = "pwn\x1b]0;TITLE\x07\x1b[2J"
    path = rewritten(small_talk, tmp_path / "evil.gguf", fields={"general.name": string(evil), evil: string(evil)})
    for arguments in (("inspect", path), ("chat", path, "--max-tokens", 1)):
        done = cli(*arguments, stdin="Hello")
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert "\\x1b" in done.stdout + done.stderr
