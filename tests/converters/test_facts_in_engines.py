"""What a checkpoint says in one place alone, or in two against each other, holds in both engines, and is reported."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from transformers import AutoTokenizer
from variants import edit_json, fine_tuned
from vocabularies import split_up

import edge_llama
from edge_llama import Message
from edge_llama import convert as conversion

SHAPE = checkpoints.Shape(hidden=32, ffn=64, layers=1, heads=2, kv_heads=2)
CHAT = [{"role": "user", "content": "river <tool_call> stone"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fine_tuned(tmp_path_factory.mktemp("said") / "checkpoint")


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def model(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[edge_llama.Model]:
    path = checkpoint.with_name("model.gguf" if request.param == "gguf" else "model")
    done = conversion.convert(checkpoint, path, to=request.param, quant="f32")
    with edge_llama.open(done.output, n_ctx=128) as opened:
        yield opened


def test_a_chat_is_what_transformers_makes_of_it(model: edge_llama.Model, checkpoint: Path) -> None:
    reference = AutoTokenizer.from_pretrained(checkpoint)
    expected = reference.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert model.template is not None
    ids = model.template.tokens([Message(**message) for message in CHAT])
    for token in ("<|im_start|>", "<|im_end|>"):
        index = reference.convert_tokens_to_ids(token)
        assert ids.count(index) == list(expected).count(index) > 0
    assert model.tokenizer.special_texts["eos_token"] == reference.eos_token == "<|im_end|>"
    assert model.tokenizer.encode("<tool_call>")[-1] == reference.convert_tokens_to_ids("<tool_call>")


def test_every_end_token_ends_an_answer(model: edge_llama.Model, checkpoint: Path) -> None:
    ends = json.loads((checkpoint / "config.json").read_text("utf-8"))["eos_token_id"]
    assert all(model.tokenizer.is_end(token) for token in ends)
    assert not model.tokenizer.is_end(ends[-1] - 1)


def test_what_was_chosen_is_in_the_report(checkpoint: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = dict(conversion.plan(checkpoint, tmp_path / "x.gguf").notes)
    assert "chat_template.jinja" in told["chat template"]
    assert "tokenizer_config.json: chat_template differs and is not used" in told["chat template"]
    assert "by special_tokens_map.json: eos_token ('<|im_end|>'); tokenizer_config.json" in told["eos_token"]


@pytest.mark.parametrize("to", ["gguf", "onnx"])
def test_a_tokenizer_model_is_proved_with_the_steps_of_the_tokenizer_json_beside_it(to: str, tmp_path: Path) -> None:
    """Saved by transformers 5: a text that begins with a space, or with the letter for one, gets no other before it."""
    folder = checkpoints.llama2(tmp_path / "checkpoint", shape=SHAPE)
    steps = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    edit_json(folder / "tokenizer.json", normalizer=None, pre_tokenizer=steps)
    notes = conversion.plan(folder, tmp_path / "out", to=to).notes
    assert "texts and a chat become the source's own tokens" in notes["tokenizer"]


ELSEWHERE: dict[str, Callable[[Path, int], object]] = {
    "added_tokens_decoder": lambda folder, index: edit_json(
        folder / "tokenizer_config.json", added_tokens_decoder={str(index): {"content": "[tool]", "special": True}}
    ),
    "added_tokens.json": lambda folder, index: checkpoints.write_json(
        folder / "added_tokens.json", **{"[tool]": index}
    ),
    "a role": lambda folder, _: edit_json(folder / "tokenizer_config.json", pad_token="[tool]"),
    "a word's role": lambda folder, _: edit_json(folder / "tokenizer_config.json", pad_token="!"),
    "vocab.json and merges.txt": lambda folder, _: (
        split_up(folder),
        edit_json(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", pad_token="[tool]"),
    ),
}


@pytest.mark.parametrize("to", ["gguf", "onnx"])
@pytest.mark.parametrize("place", ELSEWHERE)
def test_tokens_that_are_not_in_tokenizer_json_are_proved_too(place: str, to: str, tmp_path: Path) -> None:
    folder = checkpoints.llama3(tmp_path / "checkpoint", shape=SHAPE, dtype="F32", padding=4)
    index = len(AutoTokenizer.from_pretrained(folder))
    ELSEWHERE[place](folder, index)
    template = "{{ bos_token }}{% for message in messages %}[tool]{{ message['content'] }}!{% endfor %}"
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    notes = conversion.plan(folder, tmp_path / "out", to=to).notes
    assert "texts and a chat become the source's own tokens" in notes["tokenizer"]
