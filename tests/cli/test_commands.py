"""What can be typed in a chat besides messages, in a real pseudo-terminal."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines import CAPITAL
from ggufs import rewritten
from terminals import Terminal

from edge_llama.cli import options
from edge_llama.cli.chat_session.conversation import Conversation
from edge_llama.cli.chat_session.conversations import Kept
from edge_llama.cli.terminal.console import is_unfinished, unquoted
from edge_llama.errors import OptionError, TemplateError
from edge_llama.host import devices


@pytest.fixture
def chat(terminal: Callable[..., Terminal]) -> Terminal:
    started = terminal("chat", "--temperature", 0, "--max-tokens", 12, env={"TMUX": ""})
    started.see(r"(?m)^>\Z")
    return started


def test_quotes_let_a_message_have_several_lines(chat: Terminal) -> None:
    chat.type('"""What is\r')
    chat.see(r'> """What is')
    chat.type("\rthe capital of\r")
    chat.see(r"(?m)^  the capital of")
    assert "Tokyo" in chat.ask('Japan?"""')
    assert "taken back: What is the capital of Japan?" in chat.ask("/undo")
    assert "is unknown" in chat.ask("/etc is what?")
    assert "is unknown" not in chat.ask('"""/etc is what?"""')


def test_what_is_pasted_is_one_message(chat: Terminal) -> None:
    chat.type("\x1b[200~What is\nthe capital\nof\x1b[201~")
    assert "Tokyo" in chat.ask(" Japan?")
    assert "taken back: What is the capital of Japan?" in chat.ask("/undo")
    assert "0 of them" not in chat.ask("/undo")


def test_names_arguments_and_paths_are_completed(chat: Terminal, tmp_path: Path) -> None:
    chat.type("/se\t repe\t 1.5")
    assert "repetition_penalty: 1.5" in chat.ask("")
    (tmp_path / "my notes.session").write_bytes(b"none")
    chat.type(f"/load {tmp_path}/my\t")
    assert re.search(r"my notes\.session: .*no session", chat.ask("").replace("\n", ""))


def test_undo_retry_system_and_context(chat: Terminal) -> None:
    assert "there are 0 exchanges to take back, not 1" in chat.ask("/undo")
    chat.ask(CAPITAL)
    full = used(chat)
    assert "Tokyo" in chat.ask("/retry")
    assert used(chat) == full
    assert f"taken back: {CAPITAL}" in chat.ask("/undo")
    assert used(chat) < full
    assert "expected a whole number" in chat.ask("/undo x")


def used(chat: Terminal) -> int:
    found = re.search(r"([\d,]+) of", chat.ask("/context"))
    assert found
    return int(found[1].replace(",", ""))


def test_save_and_load_go_on_where_the_chat_was(chat: Terminal, tmp_path: Path) -> None:
    chat.ask(CAPITAL)
    path = tmp_path / "japan.session"
    assert "bytes" in chat.ask(f"/save {path}")
    chat.ask("/clear")
    assert "3 messages" in chat.ask(f"/load {path}") or "2 messages" in chat.text()
    chat.ask("And of Egypt?")
    cached = re.search(r"prompt (\d+) tokens \((\d+) cached", chat.ask("/speed"))
    assert cached
    assert int(cached[2]) > 30, "what was in the file is not read again"
    assert "/load: which file?" in chat.ask("/load")
    assert "edge-llama: " in chat.ask(f"/load {tmp_path}/missing")
    assert "edge-llama: " in chat.ask(f"/save {tmp_path}/no/folder")
    assert "Egypt" in chat.ask("/undo"), "a failed load leaves the conversation"


def test_every_sampling_setting_is_shown_set_and_refused_in_one_line(chat: Terminal, tmp_path: Path) -> None:
    shown = chat.ask("/set")
    assert re.search(r"(?m)^\* temperature +0\.0$", shown)
    assert re.search(r"(?m)^  grammar +-$", shown)
    for line, said in {
        "/set seed 7": "seed: 7",
        "/set seed -": "seed: -",
        "/set temperature hot": "expected a number",
        "/set top_k 1.5": "expected a whole number",
        "/set top_p 2": "top_p is 2.0, expected a number from 0 to 1",
        "/set warmth 1": "/set warmth: unknown; known: temperature",
        "/set regex (": "regex",
        "/set logit_bias 99999999=1": "there is no token 99999999",
        "/set logit_bias 5=1, 6=-2": 'logit_bias: {"5": 1.0, "6": -2.0}',
        "/set logit_bias -": "logit_bias: -",
        "/set grammar /no/file": "cannot be read",
        '/set json_schema {"const": 5}': 'json_schema: {"const": 5}',
        "/set regex x": "json_schema and regex were given",
    }.items():
        answer = chat.ask(line)
        assert said in answer, line
    assert chat.ask("Say 5.") == "5\n>"
    chat.ask("/set json_schema -")
    chat.ask("/set stop Tokyo")
    assert "[stopped: it reached the stop string 'Tokyo']" in chat.ask(CAPITAL)
    chat.ask("/set stop -")
    chat.ask("/set max_tokens 2")
    assert "[stopped: --max-tokens is reached]" in chat.ask(CAPITAL)
    chat.ask("/set logprobs 1")
    assert re.search(r"'The' +-?\d\.\d{3}", chat.ask(CAPITAL))


def test_another_model_goes_on_with_the_conversation(chat: Terminal, packaged: Path, tmp_path: Path) -> None:
    chat.ask(CAPITAL)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(packaged.read_bytes()[:5000])
    assert "edge-llama: " in chat.ask(f"/model {broken}")
    assert "no such file" in chat.ask("/model nowhere.gguf")
    assert "small_talk.gguf" in chat.ask("/model").replace("\n", ""), "the old one is still there"
    assert "it reads the 2 messages so far" in chat.ask(f"/model {packaged}")
    assert "Tokyo" in chat.ask("/retry")
    assert "(0 cached" in chat.ask("/speed")


def test_the_last_answer_goes_to_the_clipboard(chat: Terminal) -> None:
    assert "there is no answer to copy" in chat.ask("/copy")
    chat.ask(CAPITAL)
    assert "30 characters are in the terminal's clipboard" in chat.ask("/copy")
    assert chat.copied() == "The capital of Japan is Tokyo."


def test_compact_summarises_all_but_the_last_exchange(chat: Terminal) -> None:
    assert "nothing to summarise" in chat.ask("/compact")
    chat.ask(CAPITAL)
    chat.ask("And of Italy?")
    assert "the oldest 2 messages are summarized" in chat.ask("/compact")


def test_quotes() -> None:
    assert is_unfinished('"""a\nb')
    assert not is_unfinished('"""a"""')
    assert not is_unfinished('say """a')
    assert unquoted('  """\n  a\nb\n"""\n') == ("  a\nb", True)
    assert unquoted('"""doc"""\nimport os') == ('"""doc"""\nimport os', False)
    assert unquoted(" a ") == ("a", False)
    assert unquoted('""""""') == ("", True)


@pytest.fixture
def conversation(converted: Path) -> Iterator[Conversation]:
    opened = Conversation(
        options.open_model,
        str(converted),
        {"temperature": 0, "max_tokens": 12},
        Kept(None, off=True, quiet=True),
        opening={"threads": 1},
        saved={},
        plain=True,
    )
    yield opened
    opened.close()


def test_without_memory_for_two_models_the_old_one_is_closed_first(
    conversation: Conversation, packaged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation.send(CAPITAL)
    old = conversation.model
    enough_for_one = old.artifact.weight_bytes + (256 << 20) + old.context.bytes
    monkeypatch.setattr(devices, "available_memory", lambda: enough_for_one)
    conversation.change_model(str(packaged))
    assert "this one is closed first" in capsys.readouterr().err
    assert conversation.model.artifact.path == packaged
    conversation.retry()
    assert "Tokyo" in capsys.readouterr().out


def test_an_error_after_the_old_model_was_closed_opens_it_again(
    conversation: Conversation, packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation.send(CAPITAL)
    old = conversation.model
    enough_for_one = old.artifact.weight_bytes + (256 << 20) + old.context.bytes
    monkeypatch.setattr(devices, "available_memory", lambda: enough_for_one)
    mute = rewritten(packaged, tmp_path / "mute.gguf", fields={"tokenizer.chat_template": None})
    with pytest.raises(TemplateError, match="has no chat template"):
        conversation.change_model(str(mute))
    assert conversation.model is not old
    assert conversation.model.artifact.path == old.artifact.path
    conversation.retry()
    assert conversation.last
    assert "Tokyo" in conversation.last.text


def test_a_model_that_can_not_fit_at_all_leaves_the_old_one_open(
    conversation: Conversation, packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = conversation.model
    taken = old.context.needed  # by others, nearly all of what ours would leave
    monkeypatch.setattr(devices, "available_memory", lambda: 50_000_000 - taken)
    with pytest.raises(OptionError, match="not enough memory"):
        conversation.change_model(str(packaged))
    assert conversation.model is old
    monkeypatch.undo()
    conversation.send(CAPITAL)
    assert conversation.last
    assert "Tokyo" in conversation.last.text
