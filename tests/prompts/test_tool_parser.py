"""Tool calls are found in answers however these are cut, and nothing else of an answer changes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.datatypes import ToolCall as MetaToolCall
from llama_models.datatypes import ToolPromptFormat
from llama_models.llama3.tool_utils import ToolUtils

from edge_llama import OptionError
from edge_llama.prompts.tool_formats import AROUND, FORMS, form_named
from edge_llama.prompts.tool_parser import ToolCallParser

NAMES = frozenset(("f", "g", "get_weather", "api.get"))
OPEN, CLOSE = 1, 2
TAGS = {OPEN: "<|python_tag|>", CLOSE: "<|python_end|>"}
Calls = list[tuple[str, dict[str, Any]]]


def parsed(form: str, answer: list[str | int], names: frozenset[str] = NAMES) -> tuple[str, Calls, list[str]]:
    """What is made of an answer in pieces; numbers are tags. ``form`` may be "any"."""
    reader = ToolCallParser(FORMS.get(form), names, TAGS)
    reads = [reader.tag(part) if isinstance(part, int) else reader.feed(part) for part in answer] + [reader.finish()]
    calls = [(call.name, call.arguments) for part in reads for call in part.calls]
    return "".join(part.text for part in reads), calls, reader.notes


F1: Calls = [("f", {"x": 1})]
ANSWERS: list[tuple[str, list[str | int], str, Calls, str]] = [
    # form, answer, its text, its calls, what a note says
    ("json", ['{"name": "f", "parameters": {"x": 1}}'], "", F1, ""),
    ("json", ['\n\n{"type": "function", "name": "f", "parameters": {"x": 1}}\n'], "", F1, ""),
    ("json", ['{ "name":"f" ,"arguments" : {"x": 1}} ; {"name": "g", "parameters": {}}'], "", [*F1, ("g", {})], ""),
    ("json", ['{"name": "f", "parameters": {"x": 1}}{"name": "g", "parameters": {}}'], "", [*F1, ("g", {})], ""),
    ("json", ['[{"name": "f", "parameters": {"x": 1}}, {"name": "g", "parameters": {}}]'], "", [*F1, ("g", {})], ""),
    ("json", ['{"parameters": {"x": "}\\"{"}, "name": "f"}'], "", [("f", {"x": '}"{'})], ""),
    ("json", ['Let me see.\n{"name": "f", "parameters": {"x": 1}}'], "Let me see.\n", F1, ""),
    ("json", ['{"name": "f", "parameters": {"x": 1}}; that is it'], "; that is it", F1, ""),
    (
        "json",
        ['{"name": "f", "parameters": {"x": 1}}\nand\n {"name": "g", "parameters": {}}'],
        "\nand\n ",
        [*F1, ("g", {})],
        "",
    ),
    ("json", ["  \n "], "  \n ", [], ""),
    ("json", ['x = {"a": [1]}, {} and []'], 'x = {"a": [1]}, {} and []', [], ""),
    ("json", ['{"name": "Ann", "age": 5}'], '{"name": "Ann", "age": 5}', [], "no tool is called Ann"),
    ("json", ['{"name": "f", "parameters": 5}.'], '{"name": "f", "parameters": 5}.', [], "no object of parameters"),
    ("json", ['{"name": "f"}'], '{"name": "f"}', [], "no object of parameters"),
    ("json", ['{"name": "f", "parameters": {}, "z": 1}'], '{"name": "f", "parameters": {}, "z": 1}', [], "more than"),
    (
        "json",
        ['{"name": "f", "name": "g", "parameters": {}}'],
        '{"name": "f", "name": "g", "parameters": {}}',
        [],
        "twice",
    ),
    (
        "json",
        ['{"name": "f", "parameters": {"x": NaN}}'],
        '{"name": "f", "parameters": {"x": NaN}}',
        [],
        "NaN is no JSON",
    ),
    (
        "json",
        ['{"name": "f", "parameters": {"x": 1e999}}'],
        '{"name": "f", "parameters": {"x": 1e999}}',
        [],
        "Out of range",
    ),
    (
        "json",
        ['{"name": "f", "parameters": {"x": "\\ud800"}}'],
        '{"name": "f", "parameters": {"x": "\\ud800"}}',
        [],
        "surrog",
    ),
    ("json", ['{"name": "f", "parameters": {"x": '], '{"name": "f", "parameters": {"x": ', [], "ends within it"),
    ("json", ["[f(x=1)]"], "[f(x=1)]", [], "the text names f as calls do"),
    ("json", [OPEN, '{"name": "f", "parameters": {"x": 1}}'], "", F1, ""),
    ("json", ["Well: ", OPEN, '{"name": "f", "parameters": {"x": 1}}', CLOSE, "done"], "Well: done", F1, ""),
    ("json", [OPEN, "a", CLOSE, '{"name": "f", "parameters": {"x": 1}}'], "a", F1, "no tool call: 'a'"),
    (
        "json",
        [OPEN, '{"name": "f", "parameters": {"x": 1}}; {"name": "Z", "parameters": {}}'],
        '; {"name": "Z", "parameters": {}}',
        F1,
        "no tool is called Z",
    ),
    ("json", [OPEN, 'f.call(query="a\\"b]")'], "", [("f", {"query": 'a"b]'})], ""),
    ("json", [OPEN, "[f(x=1)]"], "", F1, ""),
    ("json", [OPEN, "import os"], "import os", [], "invalid syntax"),
    ("json", [OPEN], "", [], ""),
    ("json", ['{"name": "f", "para', OPEN, "[f(x=1)]"], '{"name": "f", "para', F1, "ends within it"),
    ("json", ['<|python_tag|>{"name": "g", "parameters": {}}'], "<|python_tag|>", [("g", {})], ""),
    ("pythonic", ["[f(x=1)]"], "", F1, ""),
    ("pythonic", [" [f(x=1), g(), api.get(y='a]')]\n"], "", [*F1, ("g", {}), ("api.get", {"y": "a]"})], ""),
    (
        "pythonic",
        ["[f(x=True, y=[null, -1.5e3, {'a': (false, None)}])]"],
        "",
        [("f", {"x": True, "y": [None, -1500.0, {"a": [False, None]}]})],
        "",
    ),
    (
        "pythonic",
        [r"""[f(a='', b="", c='''it's "[x]"''', d="\d\n\\", e='\'')]"""],
        "",
        [("f", {"a": "", "b": "", "c": 'it\'s "[x]"', "d": "\\d\n\\", "e": "'"})],
        "",
    ),
    ("pythonic", ["[f(from='A', class = 'as=b', x=1)]"], "", [("f", {"from": "A", "class": "as=b", "x": 1})], ""),
    ("pythonic", ["Sure! [f(x=1)] ok"], "Sure!  ok", F1, ""),
    ("pythonic", ["a [link](http://x), [1, 2], [] [x"], "a [link](http://x), [1, 2], [] [x", [], ""),
    ("pythonic", ["[Z(x=1)]"], "[Z(x=1)]", [], "no tool is called Z"),
    ("pythonic", ["[f(1)]"], "[f(1)]", [], "have no names"),
    ("pythonic", ["[f(**x)]"], "[f(**x)]", [], "have no names"),
    ("pythonic", ["[f(x=y)]"], "[f(x=y)]", [], "no literal"),
    ("pythonic", ["[f(x=b'y')]"], "[f(x=b'y')]", [], "a string begins with b"),
    ("pythonic", ["[f(x={1})]"], "[f(x={1})]", [], "JSON can't express"),
    ("pythonic", ["[f(x='\\400')]"], "[f(x='\\400')]", [], "no character"),
    ("pythonic", ["[f(x=1if y else 2)]"], "[f(x=1if y else 2)]", [], "a number runs into a word"),
    ("pythonic", ["[f(x=1), 2]"], "[f(x=1), 2]", [], "no list of calls"),
    ("pythonic", ["[f(x=1), Z()]"], "[f(x=1), Z()]", [], "no tool is called Z"),
    ("pythonic", ["[f(x=1}"], "[f(x=1}", [], "ends within it"),
    ("pythonic", ["[f(x=1"], "[f(x=1", [], "ends within it"),
    ("pythonic", [OPEN, "[f(x=1)]", CLOSE], "", F1, ""),
    ("pythonic", [OPEN, '{"name": "f", "parameters": {"x": 1}}', CLOSE], "", F1, ""),
]


CALL = '{"name": "f", "parameters": {"x": 1}}'
SHAPES = [
    CALL,
    CALL.replace("parameters", "arguments"),
    '{"id": 0, "name": "f", "arguments": {"x": 1}}',
    '{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}',
    '{"type": "function", "function": {"name": "f", "parameters": {"x": 1}}}',
    '{"function": {"name": "f", "arguments": {"x": 1}}}',
    '{"function": "f", "arguments": {"x": 1}}',
    '{"type": "function", "function": "f", "parameters": {"x": 1}}',
    '{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\\"x\\": 1}"}',
    '{"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}',
    '{"tool": "f", "args": {"x": 1}}',
    '{"tool_name": "f", "parameters": {"x": 1}}',
    '{"arguments": {"x": 1}, "name": "f", "index": 0}',
    '{"tool_calls": [{"name": "f", "arguments": {"x": 1}}]}',
    '{"function_call": {"name": "f", "arguments": "{\\"x\\": 1}"}}',
    '[{"function": {"name": "f", "arguments": {"x": 1}}}]',
    "[f(x=1)]",
    "f(x=1)",
    '<function=f>{"x": 1}</function>',
    *(f"{opener}{CALL}{closer}" for opener, closer in AROUND.items()),
    f"<tool_call>\n{CALL}\n</tool_call>",
    f"<tool_call>{CALL}",
    "<tool_call>[f(x=1)]</tool_call>",
    "```tool_code\nf(x=1)\n```",
    "```python\n[f(x=1)]\n```",
    f"```json\n[{CALL}]\n```",
    f"```xml\n<tool_call>\n{CALL}\n</tool_call>\n```",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_well_formed_call_is_one_in_whatever_shape(shape: str) -> None:
    assert parsed("any", list(shape)) == parsed("any", [shape]) == ("", F1, [])
    assert parsed("any", [f"{shape}\n{shape}"])[:2] == ("", F1 * 2)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "f(x=1)"])
def test_what_is_said_before_and_after_a_call_stays(shape: str) -> None:
    assert parsed("any", list(f"Let me see. {shape} There.")) == ("Let me see.  There.", F1, [])


ALMOST: list[tuple[str, str]] = [
    ('{"name": "f", "arguments": "no JSON"}', "Expecting value"),
    ('{"name": "f", "arguments": "5"}', "no object of parameters"),
    ('{"name": "f", "function": {"name": "g"}, "arguments": {}}', "name twice"),
    ('{"name": "f", "function": "g", "arguments": {}}', "several names"),
    ('{"name": "f", "input": {}, "arguments": {}}', "no object of parameters"),
    ('{"type": "object", "name": "f", "arguments": {}}', "more than a name"),
    ('{"function": {"name": "f", "arguments": {}}, "more": 1}', "more than a name"),
    ('{"function": {"name": "Z", "arguments": {}}}', ""),
    ('{"f": {"x": 1}}', "the text names f"),
    ("{'name': 'f', 'parameters': {}}", "the text names f"),
    ("<tool_call>f</tool_call>", ""),
    ('<tool_call>{"name": "f"}</tool_call>', "no object of parameters"),
    (
        "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
        "the answer ends within it",
    ),
    ('<function=Z>{"x": 1}</function>', "no tool is called Z"),
    ("<function=f>5</function>", "no object of parameters"),
    ("I would call f(x=1) there.", "the text names f"),
    ("```sh\nf(x=1)\n```", "the text names f"),
    ('[TOOL_CALLS]f[ARGS]{"x": 1}', ""),
    ('{"id": 5, "title": "An f"}', ""),
    ("```json\n[1, 2]\n```", ""),
    ("`f` and <b>f</b> and ```", ""),
]


@pytest.mark.parametrize(("answer", "note"), ALMOST)
def test_what_is_no_call_is_text_and_a_note_says_why_if_it_names_a_tool(answer: str, note: str) -> None:
    text, calls, notes = parsed("any", list(answer))
    assert (text, calls) == (answer, [])
    assert len(notes) == bool(note)
    assert note in "".join(notes)


def test_a_given_form_alone_counts_and_another_is_noted() -> None:
    for form, answer in (("pythonic", CALL), ("json", "[f(x=1)]"), ("tag", "f(x=1)"), ("bare", "[f(x=1)]")):
        text, calls, notes = parsed(form, [answer])
        assert (text, calls) == (answer, [])
        assert "the text names f as calls do" in notes[0]


@pytest.mark.parametrize(("form", "answer", "text", "calls", "note"), ANSWERS)
def test_calls_are_taken_out_and_all_else_is_text(
    form: str, answer: list[str | int], text: str, calls: Calls, note: str
) -> None:
    found = parsed(form, answer)
    assert found[:2] == (text, calls)
    assert len(found[2]) == bool(note)
    assert note in "".join(found[2])


@pytest.mark.parametrize(
    ("form", "answer"), [(form, answer) for form, answer, *_ in ANSWERS] + [("any", [answer]) for answer, _ in ALMOST]
)
def test_an_answer_cut_anywhere_reads_the_same(form: str, answer: list[str | int]) -> None:
    whole = parsed(form, answer)
    letters: list[str | int] = []
    for at, part in enumerate(answer):
        letters += [part] if isinstance(part, int) else list(part)
        for cut in range(0 if isinstance(part, int) else len(part)):
            assert parsed(form, [*answer[:at], str(part)[:cut], str(part)[cut:], *answer[at + 1 :]]) == whole, cut
    assert parsed(form, letters) == whole


FRAGMENTS = st.sampled_from(
    [
        *(
            '{"name": "f", "parameters": {"x": 1}}',
            '{"name": "',
            '{"type": "function", ',
            '"parameters": {}}',
            "name",
            ":",
        ),
        *("[f(x=1)]", "[g()", "f", "g(", "x=", "from=", "null", "f.call(", "Z", "1", "é", ";", ",", " ", "\n"),
        *("{", "}", "[", "]", "(", ")", "'", '"', "'''", '"""', "\\", OPEN, CLOSE),
        *("<tool_call>", "</tool_call>", "<tool", "```json\n", "```", "<function=f>", "</function>", "<"),
    ]
)


@settings(max_examples=500, deadline=None)
@given(
    parts=st.lists(FRAGMENTS, max_size=14),
    form=st.sampled_from(["any", *FORMS]),
    cuts=st.randoms(use_true_random=False),
)
def test_any_answer_cut_anyhow_reads_the_same_and_loses_nothing(parts: list[str | int], form: str, cuts: Any) -> None:
    joined: list[str | int] = []
    pieces: list[str | int] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
        at = cuts.randint(0, len(part)) if isinstance(part, str) else 0
        pieces += [part[:at], part[at:]] if isinstance(part, str) else [part]
    text, calls, notes = parsed(form, joined)
    assert parsed(form, pieces) == (text, calls, notes)
    plain = "".join(part for part in parts if isinstance(part, str))
    if not calls:
        assert text == plain
    else:  # the text in its order, with less in it
        assert re.search(".*?".join(map(re.escape, text)), plain, re.DOTALL)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True).map("a{}".format), JSON_VALUES, max_size=4)


@settings(max_examples=300, deadline=None)
@given(many=st.lists(ARGUMENTS, min_size=1, max_size=3), spaced=st.booleans())
def test_any_arguments_come_back(many: list[dict[str, Any]], spaced: bool) -> None:
    calls = [("f", arguments) for arguments in many]
    dumped = [
        json.dumps({"name": "f", "parameters": arguments}, indent=2 if spaced else None, ensure_ascii=spaced)
        for arguments in many
    ]
    assert parsed("json", list("; ".join(dumped))) == ("", calls, [])
    for write in (repr, json.dumps):
        bodies = [", ".join(f"{key}={write(value)}" for key, value in arguments.items()) for arguments in many]
        assert parsed("pythonic", list("[" + ", ".join(f"f({body})" for body in bodies) + "]")) == ("", calls, [])


META_ARGUMENTS = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}", fullmatch=True).map("a{}".format),
    st.integers() | st.booleans() | st.none() | st.text("abc ]})é", max_size=5),
    max_size=4,
)


@given(arguments=META_ARGUMENTS)
def test_what_metas_code_writes_is_parsed_as_its_code_parses_it(arguments: dict[str, Any]) -> None:
    for form, meta in (("json", ToolPromptFormat.json), ("pythonic", ToolPromptFormat.python_list)):
        call = MetaToolCall(call_id="1", tool_name="get_weather", arguments=arguments)
        text = ToolUtils.encode_tool_call(call, meta)
        by_meta = ToolUtils.maybe_extract_custom_tool_call(text) or ("get_weather", arguments)  # theirs fails at "as"
        assert parsed(form, [text]) == ("", [by_meta], [])


def test_plain_text_passes_at_once_and_a_call_is_given_when_it_is_complete() -> None:
    for form in FORMS:
        reader = ToolCallParser(FORMS[form], NAMES, TAGS)
        for text in ("The", " weather", "\n", "in f (Paris) is: ", '"x" ', "} ] "):
            assert reader.feed(text).text == text
    reader = ToolCallParser(FORMS["json"], NAMES, TAGS)
    assert [reader.feed(letter).text for letter in '{"n'] == ["", "", ""]
    assert reader.feed("o").text == '{"no', "clear by now: no call has such a key"
    for letter in '{"name": "f", "parameters": {"x": 1}':
        assert reader.feed(letter) == type(reader.feed(""))()
    assert [call.name for call in reader.feed("}").calls] == ["f"]
    assert [reader.feed(letter).text for letter in '{"name": "Ann"'][-1] == '{"name": "Ann"'
    reader = ToolCallParser(FORMS["pythonic"], NAMES, TAGS)
    assert [reader.feed(part).text for part in ("[", "link", "](")] == ["", "", "[link]("]


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("json", '[{"name": "f", "parameters": {"x": 1}}, {"name": "g", "parameters": {}}]'),
        ("json", '{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}'),
        ("pythonic", "[f(x=1), g()]"),
    ],
)
def test_one_call_is_all_that_is_wanted(form: str, answer: str) -> None:
    reader = ToolCallParser(FORMS[form], NAMES, TAGS, is_single=True)
    assert not reader.is_complete
    found = reader.feed(answer)
    assert reader.is_complete
    assert [(call.name, call.arguments) for call in found.calls] == F1
    assert reader.notes == ["one tool call was asked for: left out g"]
    assert not reader.finish().calls


def test_code_between_tags_is_a_call_of_the_interpreter_if_there_is_one() -> None:
    code = "def f(x):\n    return {'a': x}\nprint(f(1))"
    names = frozenset(("code_interpreter", "f"))
    assert parsed("json", [OPEN, code], names) == ("", [("code_interpreter", {"code": code})], [])
    assert parsed("json", [OPEN, '{"name": "f", "parameters": {}}'], names) == ("", [("f", {})], [])


def test_python_is_parsed_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for code in (f"__import__('pathlib').Path({str(canary)!r}).touch()", f"open({str(canary)!r}, 'w')"):
        for answer in (
            [f"[f(x={code})]"],
            [OPEN, f"[f(x={code})]"],
            [f"[{code}]"],
            [OPEN, code],
            [f"[f({code})(x=1)]"],
        ):
            assert parsed("pythonic", answer)[:2] == ("".join(part for part in answer if isinstance(part, str)), [])
    assert not canary.exists()


@pytest.mark.parametrize(
    "body",
    [
        *(
            "[" * 5000 + "]" * 5000,
            "-" * 100_000 + "1",
            "1+" * 100_000 + "1",
            "not " * 5000 + "1",
            "a" + ".b" * 100_000,
        ),
        *("9" * 5000, "\0", "'\0'", '"\\N{no such}"', "'\\x1'", "'\\ud800'", "lambda: 1", "0777"),
    ],
)
def test_a_call_that_the_parser_refuses_stays_text(body: str) -> None:
    text = f"[f(x={body})]"
    assert parsed("pythonic", [text])[:2] == (text, [])


def test_json_nested_too_deeply_stays_text() -> None:
    text = '{"name": "f", "parameters": {"x": ' + "[" * 200_000 + "]" * 200_000 + "}}"
    assert parsed("json", [text])[:2] == (text, [])


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(OptionError, match="tool_format is 'xml'; known: json, pythonic, bare, tag"):
        form_named("xml")
