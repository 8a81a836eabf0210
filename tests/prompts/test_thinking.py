"""Thoughts are told from the answer, however the text is cut."""

import pytest

from edge_llama.prompts.thinking import FORMS, Form, ThinkingParser, form_in

THINK = FORMS[0]


def split(pieces: list[str], *, is_open: bool = False) -> tuple[str, str]:
    parser = ThinkingParser(THINK, {}, is_open=is_open)
    parts = [*map(parser.feed, pieces), parser.finish()]
    return "".join(part.thinking for part in parts), "".join(part.text for part in parts)


@pytest.mark.parametrize(
    ("answer", "is_open", "thinking", "text"),
    [
        ("<think>\nTokyo, I think.\n</think>\n\nIt is Tokyo. ", False, "Tokyo, I think.", "It is Tokyo. "),
        ("\n <think>a</think>b", False, "a", "b"),
        ("Tokyo,\nI think.\n</think>\n\nIt is Tokyo.", True, "Tokyo,\nI think.", "It is Tokyo."),
        ("<think>\n\n</think>\n\nTokyo", False, "", "Tokyo"),
        ("Tokyo. A <think> tag</think> is text", False, "", "Tokyo. A <think> tag</think> is text"),
        ("<think>a</think>b<think>c</think>", False, "a", "b<think>c</think>"),
        ("<think>a < b </ thin </think", False, "a < b </ thin </think", ""),
        ("<think>never ends \n", False, "never ends", ""),
        ("  <thin", False, "", "  <thin"),
        ("<thinner", False, "", "<thinner"),
        ("  spaces stay", False, "", "  spaces stay"),
        ("", False, "", ""),
        ("", True, "", ""),
    ],
)
def test_thoughts_come_first_or_not_at_all(answer: str, is_open: bool, thinking: str, text: str) -> None:
    assert split([answer], is_open=is_open) == (thinking, text)
    assert split(list(answer), is_open=is_open) == (thinking, text)
    for at in range(len(answer)):
        assert split([answer[:at], answer[at:]], is_open=is_open) == (thinking, text)


def test_what_is_certain_is_told_at_once() -> None:
    parser = ThinkingParser(THINK, {}, is_open=True)
    assert parser.feed("Hm, ").thinking == "Hm,"
    assert parser.feed("Tokyo").thinking == " Tokyo"
    assert parser.is_thinking
    assert parser.feed("</think>").thinking == ""
    assert not parser.is_thinking
    assert parser.feed(" It").text == "It"


@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_the_templates(form: Form) -> None:
    assert form_in(f"{{% if x %}}{{{{ '{form.closer}' }}}}") == form
    assert form_in("{{ messages }}") is None
