"""A chat template neither hangs nor fills the memory: it fails, with our error."""

import time

import pytest
from refusals import refusal

import edge_llama
from edge_llama import Message, TemplateError
from edge_llama.prompts.chat_template import ChatTemplate

DOUBLING = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = DOUBLE %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**12 }}",
        "{{ 'x'.center(10**13) }}",
        "{{ 'x' | center(10**13) }}",
        "{{ messages[0].content | center(10**10) }}",
        "{{ '%999999999999d' % 1 }}",
        "{{ '%999999999999d' | format(1) }}",
        "{{ '{:999999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**12) }}",
        "{% set n = 10**9 %}{{ 10**n }}",
        "{% set ns = namespace(x=10) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) recursive %}{{ loop(range(99999)) if loop.depth < 3 }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        DOUBLING.replace("DOUBLE", "ns.x + ns.x"),
        DOUBLING.replace("DOUBLE", "ns.x ~ ns.x"),
        DOUBLING.replace("DOUBLE", "[ns.x, ns.x] | join"),
        DOUBLING.replace("DOUBLE", "''.join([ns.x, ns.x])"),
        DOUBLING.replace("DOUBLE", "ns.x.replace('x', 'xx')"),
        DOUBLING.replace("DOUBLE", "ns.x | replace('x', ns.x)"),
        DOUBLING.replace("DOUBLE", "'%s%s' % (ns.x, ns.x)"),
        DOUBLING.replace("DOUBLE", "[ns.x, ns.x]") + "{{ ns.x }}",
        DOUBLING.replace("DOUBLE", "[ns.x, ns.x]") + "{{ ns.x | tojson }}",
        DOUBLING.replace("{% set ns.x = DOUBLE %}", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
        "{{ (['x' * 10**6] * 10**6) | join }}",
        "{% for i in range(99999) %}{{ 'x' * 10**4 }}{% endfor %}",
        "{{ lipsum(10**9) }}",
        "{{ (1).to_bytes(10**11, 'big') }}",
        "{{ ('{0}' * 10**6).format('x' * 10**6) }}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{% for i in [1] %}" * 40 + "{% endfor %}" * 40,
        "{{ '\\ud800' }}",
        "\ud800",
    ],
)
def test_a_template_that_takes_too_much_is_a_typed_error_soon(model: edge_llama.Model, source: str) -> None:
    began = time.perf_counter()
    with refusal(TemplateError, "chat template", "here"):
        ChatTemplate(source, model.tokenizer, "here").tokens([Message("user", "x")])
    assert time.perf_counter() - began < 5


def test_each_rendering_has_the_whole_of_its_time(model: edge_llama.Model) -> None:
    template = ChatTemplate("{% for i in range(50000) %}{% endfor %}{{ messages[0].content }}", model.tokenizer, "here")
    expected = model.tokenizer.encode("x")
    began = time.thread_time()
    while time.thread_time() - began < 1.5:
        assert template.tokens([Message("user", "x")]) == expected


def test_a_long_conversation_is_within_the_limits(model: edge_llama.Model) -> None:
    turns = [Message("user" if index % 2 == 0 else "assistant", "word " * 400) for index in range(501)]
    assert model.count_tokens(turns) > 501 * 400


def test_loops_keep_what_jinja_tells_of_them(model: edge_llama.Model) -> None:
    source = (
        "{% for m in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last else ',' }}{% endfor %}"
        "{% for m in [] %}{% else %}none{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}"
        "{% for m in nothing %}{% endfor %}{{ ['a', 1] | join('-') }}{{ messages[0].content }}"
    )
    ids = ChatTemplate(source, model.tokenizer, "here").tokens([Message("user", "x")])
    assert b"".join(map(model.tokenizer.piece, ids)).decode() == "1/3,2/3,3/3.nonea1a-1x"
