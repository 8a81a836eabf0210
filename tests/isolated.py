"""How the tests of models in processes of their own open theirs."""

from typing import Any

TEMPLATE = """\
{{- bos_token }}{{ date_string }}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>' + message.content }}
    {%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>' }}
"""
OPTIONS: dict[str, Any] = {
    "n_ctx": 2048,
    "kv_format": "f32",
    "flash_attention": False,
    "threads": 1,
    "chat_template": TEMPLATE,
}
