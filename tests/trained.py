"""A small Llama that was trained, in seconds, to call tools: in both forms, and to answer when it has the results."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import torch
from tokenizers import AddedToken, Tokenizer
from tools import LLAMA4_SPECIAL, PYTHONIC_LLAMA4_TEMPLATE, call, result
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import converters
from converters.architectures.llama_families import FAMILIES


def weather(city: str) -> str:
    """Tell it.

    Args:
        city: Where
    """
    return f"22 degrees in {city}"


_TERSE = re.sub(r"You may call .*?JSON object", "JSON", FAMILIES["llama3.1"].template)
TEMPLATES = {
    "json": _TERSE.replace("tool | tojson(indent=4)", "tool.function.name"),
    "pythonic": PYTHONIC_LLAMA4_TEMPLATE.replace("tools | tojson(indent=4)", "tools[0].function.name"),
}
"""With tools in few tokens, so that training takes seconds."""
PARIS, BOTH, WRONG, HELLO, TAG = "Paris?", "Rome, Bonn?", "Wrong?", "Hello!", "Tag?"
SUNNY = "It is 22 degrees."


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the model shall write after a conversation; control tokens in it are single tokens."""

    messages: list[dict[str, Any]]
    answer: str
    look_alike: bool = False
    """Tags in the answer are spelled out, letter by letter."""


def _lessons(form: str) -> list[Lesson]:
    answers = {
        "json": {
            PARIS: '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}<|eom_id|>',
            BOTH: 'Ok. {"name": "weather", "parameters": {"city": "Rome"}}; '
            '{"name": "weather", "parameters": {"city": "Bonn"}}<|eot_id|>',
            WRONG: '{"name": "weather", "parameters": 5}<|eot_id|>',
            HELLO: "Hi {x}!<|eot_id|>",
            TAG: "<|python_tag|>x<|eot_id|>",
        },
        "pythonic": {
            PARIS: '<|python_start|>[weather(city="Paris")]<|python_end|><|eom|>',
            BOTH: "Ok. [weather(city='Rome'), weather(city='Bonn')]<|eot|>",
            WRONG: "[weather(5)]<|eot|>",
            HELLO: "Hi [x]!<|eot|>",
            TAG: "<|python_start|>x<|eot|>",
        },
    }[form]
    lessons = [Lesson([_ask(text)], answer, look_alike=text == TAG) for text, answer in answers.items()]
    end = "<|eot_id|>" if form == "json" else "<|eot|>"
    return [*lessons, Lesson([_ask(PARIS), *_results("Paris")], SUNNY + end)]


def _ask(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _results(city: str) -> list[dict[str, Any]]:
    called = {"role": "assistant", "content": "", "tool_calls": [call("weather", {"city": city})]}
    return [called, result(weather(city))]


def with_llama4_tokens(folder: Path) -> Path:
    """A checkpoint of ``checkpoints.llama3(padding=len(LLAMA4_SPECIAL))`` gets Llama 4's control tokens as well."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in LLAMA4_SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        config["eos_token_id"] += [tokenizer.token_to_id(text) for text in ("<|eot|>", "<|eom|>")]
        (folder / name).write_text(json.dumps(config))
    return folder


def tool_llama(folder: Path) -> Path:
    """The trained model as a GGUF file beside the checkpoint; its own template is the one for ``json``."""
    shape = checkpoints.Shape(hidden=64, ffn=128, layers=2)
    checkpoints.llama3(folder, shape=shape, padding=len(LLAMA4_SPECIAL), dtype="F32")
    with_llama4_tokens(folder)
    lessons = [_encoded(folder, TEMPLATES[form], lesson) for form in TEMPLATES for lesson in _lessons(form)]
    weights = _train(LlamaConfig.from_pretrained(folder), lessons)
    checkpoints.write_safetensors(folder / "model.safetensors", weights, "F32")
    output = folder.with_suffix(".gguf")
    (folder / "template.jinja").write_text(TEMPLATES["json"])
    converters.convert(folder, output, quant="f32", chat_template=folder / "template.jinja")
    return output


def _encoded(folder: Path, template: str, lesson: Lesson) -> tuple[list[int], list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        lesson.messages, tools=[weather], chat_template=template, add_generation_prompt=True, return_dict=False
    )
    if not lesson.look_alike:
        return prompt, tokenizer.encode(lesson.answer, add_special_tokens=False)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.encode_special_tokens = True
    body, end, rest = lesson.answer.rpartition("<|eot")
    return prompt, [*plain.encode(body, add_special_tokens=False).ids, plain.token_to_id(end + rest)]


def _train(config: LlamaConfig, lessons: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    width = max(len(prompt) + len(answer) for prompt, answer in lessons)
    ids = torch.zeros(len(lessons), width, dtype=torch.long)
    labels = torch.full((len(lessons), width), -100)
    for row, (prompt, answer) in enumerate(lessons):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _step in range(300):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    assert loss.item() < 0.05, "the lessons were not learned"
    return {name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
