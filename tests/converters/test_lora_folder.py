"""An adapter's folder holds a tokenizer and a chat template too: the merged model talks by them."""

import shutil
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from adapters import SMALL, merged_by_peft, merged_by_us, numbers, state_of, trained
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer
from variants import edit_json
from vocabularies import CHATML_TEMPLATE, LLAMA3_TEMPLATE

import converters
import edge_llama
from converters.checkpoint import TEMPLATE_NOTE
from converters.sources import open_checkpoint
from edge_llama import CheckpointError
from edge_llama.files.gguf import read_header

PLAIN = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
CHAT = [{"role": "user", "content": "Wer baut Brücken?"}]
MORE = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for a few tokens more than there are."""
    folder = tmp_path_factory.mktemp("base") / "Base"
    return checkpoints.llama3(folder, shape=SMALL, dtype="F32", tied=False, padding=4)


@pytest.fixture(scope="module")
def bare(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter without any tokenizer."""
    return trained(base, tmp_path_factory.mktemp("bare") / "adapter", **PLAIN)


def with_tokenizer(bare: Path, base: Path, folder: Path, **settings: Any) -> Path:
    """The adapter with a tokenizer that has two tokens more, ends with the second, and has ChatML's template."""
    if folder != bare:
        shutil.copytree(bare, folder)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in MORE])
    tokenizer.save(str(folder / "tokenizer.json"))
    given = {"bos_token": "<|begin_of_text|>", "eos_token": MORE[1], "chat_template": CHATML_TEMPLATE, **settings}
    checkpoints.write_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **given)
    return folder


def chat_ids(folder: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False))


@pytest.mark.parametrize("to", ["gguf", "onnx", "safetensors"])
def test_the_merged_model_talks_by_the_adapters_tokenizer(to: str, base: Path, bare: Path, tmp_path: Path) -> None:
    adapter = with_tokenizer(bare, base, tmp_path / "adapter")
    expected = chat_ids(adapter)
    output = tmp_path / ("out.gguf" if to == "gguf" else "out")
    plan = converters.convert(base, output, to=to, quant="f32", lora=adapter).plan
    assert expected != chat_ids(base)
    assert "tokens in place of the base's" in plan.checkpoint.notes["adapter's tokenizer"]
    assert plan.checkpoint.notes["end tokens"] == "the adapter's '<|im_end|>' beside the base's"
    assert plan.checkpoint.notes[TEMPLATE_NOTE] == "the adapter's own (--chat-template changes it)"
    if to == "safetensors":
        assert chat_ids(output) == expected
        return
    with edge_llama.open(output, n_ctx=64, threads=1) as model:
        assert model.template.tokens([edge_llama.Message(**message) for message in CHAT]) == expected
        ends = [MORE[1], "<|eot_id|>"]  # the adapter's own, and the base's generation_config.json's
        assert all(model.tokenizer.is_end(AutoTokenizer.from_pretrained(adapter).vocab[end]) for end in ends)


def test_a_gguf_base_gets_the_adapters_tokenizer_too(base: Path, bare: Path, tmp_path: Path) -> None:
    """Its own metadata stays, but for what tells of tokens."""
    adapter = with_tokenizer(bare, base, tmp_path / "adapter")
    converters.convert(base, tmp_path / "base.gguf", quant="f32")
    converters.convert(base, tmp_path / "direct.gguf", quant="f32", lora=adapter)
    converters.convert(tmp_path / "base.gguf", tmp_path / "merged.gguf", quant="f32", lora=adapter)
    direct, merged = read_header(tmp_path / "direct.gguf").fields, read_header(tmp_path / "merged.gguf").fields
    for key in direct.keys() | merged.keys():
        if key.startswith(("tokenizer.", "llama.", "edge_llama.eos")):
            assert np.array_equal(merged[key].data, direct[key].data), key


def test_chat_template_still_has_the_last_word(base: Path, bare: Path, tmp_path: Path) -> None:
    adapter = with_tokenizer(bare, base, tmp_path / "adapter")
    checkpoint = converters.plan(base, tmp_path / "out.gguf", lora=adapter, chat_template="none").checkpoint
    assert checkpoint.vocabulary.chat_templates == {}
    assert checkpoint.notes[TEMPLATE_NOTE] == "none, as asked"


def test_a_template_alone_is_used_too(base: Path, bare: Path, tmp_path: Path) -> None:
    shutil.copytree(bare, tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text(CHATML_TEMPLATE, "utf-8")
    ours = merged_by_us(base, tmp_path / "adapter")
    assert ours.vocabulary.chat_templates == {"default": CHATML_TEMPLATE}
    assert ours.vocabulary.tokens == open_checkpoint(base).vocabulary.tokens
    assert "adapter's own" in ours.notes[TEMPLATE_NOTE]


def test_a_tokenizer_without_a_template_leaves_the_bases(base: Path, bare: Path, tmp_path: Path) -> None:
    ours = merged_by_us(base, with_tokenizer(bare, base, tmp_path / "adapter", chat_template=None))
    assert ours.vocabulary.chat_templates == {"default": LLAMA3_TEMPLATE}
    assert TEMPLATE_NOTE not in ours.notes


def test_settings_alone_change_roles(base: Path, bare: Path, tmp_path: Path) -> None:
    shutil.copytree(bare, tmp_path / "adapter")
    settings = tmp_path / "adapter" / "tokenizer_config.json"
    checkpoints.write_json(settings, eos_token="<|end_of_text|>", add_bos_token=False)
    ours = merged_by_us(base, tmp_path / "adapter")
    assert ours.vocabulary.tokens[ours.vocabulary.special["eos"]] == "<|end_of_text|>"
    assert ours.vocabulary.add["bos"] is False
    assert ours.notes["adapter's tokenizer"] == "its special tokens are used: eos '<|end_of_text|>'"
    checkpoints.write_json(settings, eos_token="<|im_end|>")
    with pytest.raises(CheckpointError, match=r"eos_token is '<\|im_end\|>', no token of the base's vocabulary"):
        converters.plan(base, tmp_path / "out.gguf", lora=tmp_path / "adapter")


def test_without_a_generation_config_the_bases_end_stays_one(base: Path, bare: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").unlink()
    end = open_checkpoint(base).vocabulary.special["eos"]
    edit_json(tmp_path / "base" / "config.json", eos_token_id=end)
    ours = merged_by_us(tmp_path / "base", with_tokenizer(bare, base, tmp_path / "adapter"))
    assert ours.vocabulary.special["eos"] != end
    assert {end, ours.vocabulary.special["eos"]} <= set(ours.generation["eos_token_id"])
    assert ours.config["eos_token_id"] == [end, ours.vocabulary.special["eos"]]


def test_a_tokenizer_equal_to_the_bases_needs_no_note(base: Path, bare: Path, tmp_path: Path) -> None:
    shutil.copytree(bare, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path / "adapter")
    ours = merged_by_us(base, tmp_path / "adapter")
    assert ours.vocabulary == open_checkpoint(base).vocabulary
    assert ours.notes == open_checkpoint(base).notes


def test_more_tokens_than_rows_name_both_and_the_way_out(base: Path, bare: Path, tmp_path: Path) -> None:
    adapter = with_tokenizer(bare, base, tmp_path / "adapter")
    tokenizer = Tokenizer.from_file(str(adapter / "tokenizer.json"))
    rows = open_checkpoint(base).config["vocab_size"]
    tokenizer.add_tokens([f"<more{number}>" for number in range(rows - tokenizer.get_vocab_size() + 1)])
    tokenizer.save(str(adapter / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=rf"has id {rows}, the embedding has {rows:,} rows") as caught:
        converters.plan(base, tmp_path / "out.gguf", lora=adapter)
    assert "take the tokenizer's files out of the adapter's folder" in caught.value.remedy


@pytest.mark.parametrize("saved", [["embed_tokens", "lm_head"], None])
def test_an_adapter_with_more_tokens(saved: list[str] | None, base: Path, tmp_path: Path) -> None:
    """axolotl, LLaMA-Factory and unsloth resize the base and save both ends whole."""
    rows = open_checkpoint(base).config["vocab_size"] + 3
    adapter = trained(base, tmp_path / "adapter", rows=rows, **PLAIN, modules_to_save=saved)
    with_tokenizer(adapter, base, adapter)
    ours = merged_by_us(base, adapter)
    expected = state_of(merged_by_peft(base, adapter, rows=rows))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert (numbers(ours)[name] == expected[name]).all()
    assert len(ours.vocabulary.tokens) == ours.config["vocab_size"] == rows
    assert ours.notes["vocabulary"] == f"the adapter's, of {rows:,} rows in place of {rows - 3:,}"
    output = converters.convert(base, tmp_path / "out.gguf", lora=adapter).output
    assert read_header(output).get("llama.vocab_size", int, 0) == rows


def test_what_else_lies_there_is_told(base: Path, bare: Path, tmp_path: Path) -> None:
    shutil.copytree(bare, tmp_path / "adapter")
    for name in ("generation_config.json", "value_head.safetensors", "trainer_state.json", "notes.txt"):
        (tmp_path / "adapter" / name).write_text("{}")
    ours = merged_by_us(base, tmp_path / "adapter")
    assert ours.notes["adapter's files"] == "not used: generation_config.json, value_head.safetensors"


def test_a_change_of_the_adapters_tokenizer_is_another_conversion(base: Path, bare: Path, tmp_path: Path) -> None:
    """What was begun with the old one is not gone on with."""
    adapter = with_tokenizer(bare, base, tmp_path / "adapter")
    before = converters.plan(base, tmp_path / "out.gguf", lora=adapter)
    edit_json(adapter / "tokenizer_config.json", chat_template="{{ messages }}")
    after = converters.plan(base, tmp_path / "out.gguf", lora=adapter)
    assert before.source_state != after.source_state
    assert before.key != after.key
