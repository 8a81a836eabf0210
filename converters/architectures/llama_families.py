"""What differs among Llamas in talking rather than in computing: special tokens and chat templates.

Meta's own files carry no template; its code writes the prompts. The templates here say the same for turns of text by
system, user and assistant (and tools' answers since 3.1): Llama 2's by ``chat_completion`` in github.com/meta-llama/
llama, Llama 3's by ``ChatFormat`` in github.com/meta-llama/llama-models. Like ChatFormat, and unlike the templates in
Hugging Face's repositories, they neither trim what is said nor add a date.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

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

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA3_1 = Family(
    _LLAMA3.replace("message['role'] +", "('ipython' if message['role'] == 'tool' else message['role']) +"),
    (*_HEADERS, "<|eom_id|>"),
    {"eot": "<|eot_id|>", "eom": "<|eom_id|>"},
)
FAMILIES: dict[str, Family] = {
    "llama2": Family(_LLAMA2, ("<s>", "</s>")),
    "llama3": Family(_LLAMA3, _HEADERS, {"eot": "<|eot_id|>"}),
    "llama3.1": _LLAMA3_1,
    "llama3.2": _LLAMA3_1,
    "llama3.3": _LLAMA3_1,
}
"""By the names that ``--chat-template`` knows."""
