"""What differs among Llamas in talking rather than in computing: special tokens and chat templates.

Meta's own files carry no template; its code writes the prompts. The templates here say the same for turns of text by
system, user and assistant, and since 3.1 for tools' calls and answers: Llama 2's by ``chat_completion`` in github.com/
meta-llama/llama, Llama 3's by ``ChatFormat`` in github.com/meta-llama/llama-models. Like ChatFormat, and unlike the
templates in Hugging Face's repositories, they neither trim what is said nor add a date.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from converters.metadata.vocabulary import Vocabulary
from edge_llama.errors import OptionError

_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    5: "<|step_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
    11: "<|image|>",
}
_RESERVED = (f"<|reserved_special_token_{index}|>" for index in range(256))
LLAMA3_SPECIAL = tuple(_NAMED.get(index) or next(_RESERVED) for index in range(256))
"""The tokens that follow Llama 3's ranks, in order. Llama 3.0 calls some of those that it doesn't use reserved."""

LLAMA3_KINDS = {
    "bos": "<|begin_of_text|>",
    "eos": "<|end_of_text|>",
    "eot": "<|eot_id|>",
    "eom": "<|eom_id|>",
    "pad": "<|finetune_right_pad_id|>",
}
"""By kind, as Meta's tokenizer names them; eos, eot and eom end an answer."""


def _llama4_special() -> Iterator[str]:
    """The 2,048 tokens that follow Llama 4's ranks: a few with a meaning, the rest of each group reserved."""
    yield from ("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
    yield from ("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>")
    yield from _reserved("text_post_train_", 0, 6)
    yield from ("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>")
    yield from _reserved("text_post_train_", 8, 69)
    yield from ("<|image_start|>", "<|image_end|>")
    yield from _reserved("vision_", 0, 2)
    yield from ("<|tile_x_separator|>", "<|tile_y_separator|>")
    yield from _reserved("vision_", 2, 6)
    yield "<|image|>"
    yield from _reserved("vision_", 6, 7)
    yield "<|patch|>"
    yield from _reserved("vision_", 7, 1048)
    yield from _reserved("reasoning_", 0, 8)
    yield from ("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>")
    yield from _reserved("", 0, 904)


def _reserved(group: str, first: int, last: int) -> Iterator[str]:
    return (f"<|{group}reserved_special_token_{index}|>" for index in range(first, last))


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a family's rank file does not tell: how text is split, the special tokens after the ranks, their kinds."""

    pre: str
    special: tuple[str, ...]
    kinds: Mapping[str, str]


LLAMA3_TOKENS = Tokens("llama-bpe", LLAMA3_SPECIAL, LLAMA3_KINDS)
LLAMA4_TOKENS = Tokens(
    "llama4",
    tuple(_llama4_special()),
    {
        "bos": "<|begin_of_text|>",
        "eos": "<|end_of_text|>",
        "eot": "<|eot|>",
        "eom": "<|eom|>",
        "pad": "<|finetune_right_pad|>",
    },
)


@dataclass(frozen=True, slots=True)
class Family:
    """A way of talking: its template, and the control tokens by kind that it needs in the vocabulary.

    ``ends`` are those that end a turn.
    """

    template: str
    needs: tuple[str, ...]
    ends: Mapping[str, str] = field(default_factory=dict)


# The system message stands within the first user message. Turns alternate, as the models were trained.
_LLAMA2 = """\
{%- set system = '' -%}
{%- set turns = messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if turn['role'] != ['user', 'assistant'][loop.index0 % 2] -%}
{{- raise_exception('after the system message, user and assistant must take turns') -}}
{%- endif -%}
{%- if turn['role'] == 'user' -%}
{{- bos_token + '[INST] ' + ((system if loop.first else '') + turn['content']).strip() + ' [/INST]' -}}
{%- else -%}
{{- ' ' + turn['content'].strip() + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""

# Tools stand before the system message's text, as JSON; calls and their form as Meta's ToolUtils writes them.
_TOOLS = """\
{%- if tools -%}
{%- set system = '' -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' -}}
{{- 'You may call these functions if they help to answer. To do so, write nothing but FORM\\n\\n' -}}
{%- for tool in tools -%}
{{- tool | tojson(indent=4) + '\\n\\n' -}}
{%- endfor -%}
{{- system + '<|eot_id|>' -}}
{%- endif -%}
"""
_JSON_FORM = 'a JSON object for each call: {"type": "function", "name": its name, "parameters": its arguments}'
_JSON_CALL = """\
{{- ('' if loop.first else '; ') + '{"type": "function", "name": ' + (call['function']['name'] | tojson) -}}
{{- ', "parameters": ' + (call['function']['arguments'] | tojson) + '}' -}}
"""
_PYTHONIC_FORM = "the calls in a list: [func_name1(param1=value1, param2=value2), func_name2()]"
_PYTHONIC_CALL = """\
{{- ('[' if loop.first else ', ') + call['function']['name'] + '(' -}}
{%- for key, value in call['function']['arguments'] | items -%}
{{- ('' if loop.first else ', ') + key + '=' -}}
{{- value if value is boolean or value is none else value | tojson -}}
{%- endfor -%}
{{- ')' + (']' if loop.last else '') -}}
"""


def _llama3(role: str = "message['role']", tools: str = "", call: str = "") -> str:
    calls = "{%- for call in message['tool_calls'] or [] -%}\n" + call + "{%- endfor -%}\n" if call else ""
    return f"""\
{{{{- bos_token -}}}}
{tools}{{%- for message in messages -%}}
{{{{- '<|start_header_id|>' + {role} + '<|end_header_id|>\\n\\n' + message['content'] -}}}}
{calls}{{{{- '<|eot_id|>' -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
{{{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}}}
{{%- endif -%}}
"""


# As Llama 4's ChatFormat: calls and results end a message, not the turn. Who renders expands a picture's token.
_LLAMA4 = (
    """\
{%- macro text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content -%}
{{- '<|image|>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
"""
    + _TOOLS.replace("FORM", _PYTHONIC_FORM)
    .replace("= messages[0]['content']", "= text(messages[0]['content'])")
    .replace("<|start_header_id|>system<|end_header_id|>", "<|header_start|>system<|header_end|>")
    .replace("<|eot_id|>", "<|eot|>")
    + """\
{%- for message in messages -%}
{%- set role = 'ipython' if message['role'] == 'tool' else message['role'] -%}
{{- '<|header_start|>' + role + '<|header_end|>\\n\\n' + text(message['content']) -}}
{%- for call in message['tool_calls'] or [] -%}
"""
    + _PYTHONIC_CALL
    + """\
{%- endfor -%}
{{- '<|eom|>' if message['role'] == 'tool' or message['tool_calls'] else '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|header_start|>assistant<|header_end|>\\n\\n' -}}
{%- endif -%}
"""
)
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _llama3_1(form: str, call: str) -> Family:
    role = "('ipython' if message['role'] == 'tool' else message['role'])"
    template = _llama3(role, _TOOLS.replace("FORM", form), call)
    return Family(template, (*_HEADERS, "<|eom_id|>"), {"eot": "<|eot_id|>", "eom": "<|eom_id|>"})


FAMILIES: dict[str, Family] = {
    "llama2": Family(_LLAMA2, ("<s>", "</s>")),
    "llama3": Family(_llama3(), _HEADERS, {"eot": "<|eot_id|>"}),
    "llama3.1": _llama3_1(_JSON_FORM, _JSON_CALL),
    "llama3.2": _llama3_1(_PYTHONIC_FORM, _PYTHONIC_CALL),  # as its small models, those for text, were trained
    "llama3.3": _llama3_1(_JSON_FORM, _JSON_CALL),
    "llama4": Family(
        _LLAMA4,
        ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>"),
        {"eot": "<|eot|>", "eom": "<|eom|>"},
    ),
}
"""By the names that ``--chat-template`` knows."""


def with_family(vocabulary: Vocabulary, name: str) -> Vocabulary:
    """The vocabulary with a family's template and ends of turn; OptionError if it lacks the tokens for it."""
    family = FAMILIES[name]
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    if missing := [token for token in family.needs if token not in ids]:
        raise OptionError(
            f"--chat-template {name}: the vocabulary has no {missing[0]}", remedy="give the template as a file"
        )
    special = {**{kind: ids[token] for kind, token in family.ends.items()}, **vocabulary.special}
    return replace(vocabulary, chat_templates={"default": family.template}, special=special)
