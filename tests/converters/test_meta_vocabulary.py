"""Meta's tokenizers and chats: the ids of its own code, with Llama 3's real vocabulary; templates chosen and given."""

import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checkpoints
import llama_models
import meta_folders
import numpy as np
import pytest
from engine_source import ENGINE, unpacked
from llama_models.datatypes import RawMessage, StopReason, ToolPromptFormat
from llama_models.datatypes import ToolCall as MetaToolCall
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from meta_folders import edited_ranks
from sentencepiece import SentencePieceProcessor
from texts import CONVERSATIONS, TORTURE

import converters
import edge_llama
from converters.architectures.llama_families import FAMILIES, LLAMA3_TOKENS
from converters.tokenizers.tiktoken_ranks import read_ranks
from edge_llama import Message, OptionError, ToolCall
from edge_llama.files.gguf import Header, read_header
from edge_llama.prompts.chat_template import ChatTemplate

RANKS = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"


def converted(folder: Path) -> Header:
    """The header of the f32 file that the folder becomes."""
    output = folder.with_name(f"{folder.name}.gguf")
    converters.convert(folder, output, quant="f32")
    return read_header(output)


def test_an_embedding_longer_than_the_vocabulary_is_padded_and_that_is_told(tmp_path: Path) -> None:
    folder = meta_folders.llama3(tmp_path / "meta")
    edited_ranks(lambda lines: lines.pop())(folder)
    checkpoint = converters.plan(folder, tmp_path / "x.gguf").checkpoint
    assert checkpoint.vocabulary.tokens[-2:] == ["<|reserved_special_token_245|>", "[PAD1255]"]
    assert "1 tokens less than the embedding has rows" in checkpoint.notes["vocabulary"]


def test_merges_derived_from_ranks_hold_those_that_were_trained(tmp_path: Path) -> None:
    header = converted(meta_folders.llama3(tmp_path / "meta"))
    derived = {merge: at for at, merge in enumerate(header.fields["tokenizer.ggml.merges"].data)}
    trained = json.loads(meta_folders.llama3_tokenizer().to_str())["model"]["merges"]
    places = [derived[" ".join(merge)] for merge in trained]
    assert places == sorted(places)


def test_merges_derived_from_llama_3s_ranks_are_the_published_ones() -> None:
    """All 280,147: with one for each token a part of a longer word would be split otherwise."""
    published = read_header(unpacked(version(ENGINE)) / "models" / "ggml-vocab-llama-bpe.gguf").fields
    ranks = read_ranks(RANKS.read_bytes(), RANKS, "llama-bpe", LLAMA3_TOKENS.special, 128256)
    assert ranks.merges == list(published["tokenizer.ggml.merges"].data)


@pytest.fixture(scope="module")
def real_llama3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[edge_llama.Model]:
    """A small model with Llama 3's real vocabulary of 128,256 tokens, open."""
    folder = tmp_path_factory.mktemp("real") / "Llama-3.1-tiny-Instruct"
    shape = checkpoints.Shape(hidden=64, ffn=192, layers=1)
    meta_folders.llama3(folder, shape=shape, dtype="F16", ranks=RANKS.read_bytes())
    converters.convert(folder, folder.with_suffix(".gguf"), quant="f16")
    with edge_llama.open(folder.with_suffix(".gguf"), n_ctx=256) as model:
        yield model


def test_ids_equal_metas_tokenizer_with_llama_3s_real_vocabulary(real_llama3: edge_llama.Model) -> None:
    reference = MetaTokenizer(RANKS)
    for text in TORTURE:
        assert real_llama3.tokenizer.encode(text) == reference.encode(text, bos=False, eos=False), text
    assert real_llama3.tokenizer.control_tokens == reference.special_tokens
    assert real_llama3.tokenizer.bos == reference.bos_id
    assert all(real_llama3.tokenizer.is_end(token) for token in reference.stop_tokens)


def test_ids_of_random_texts_equal_metas_tokenizer(real_llama3: edge_llama.Model, rng: np.random.Generator) -> None:
    """Pieces of the torture list in random order, cut anywhere."""
    reference = MetaTokenizer(RANKS)
    for _ in range(300):
        joined = "".join(rng.choice(TORTURE, 12))
        text = joined[int(rng.integers(20)) : int(rng.integers(20, 400))]
        assert real_llama3.tokenizer.encode(text) == reference.encode(text, bos=False, eos=False), text


def test_ids_of_chats_equal_metas_chat_format(real_llama3: edge_llama.Model) -> None:
    reference = ChatFormat(MetaTokenizer(RANKS))
    for conversation in CONVERSATIONS:
        expected = reference.encode_dialog_prompt([RawMessage(**turn) for turn in conversation]).tokens
        assert real_llama3.template.tokens(messages(conversation)) == expected, conversation


CALLS: list[dict[str, Any]] = [{}, {"city": "Bonn", "days": 3}, {"on": True, "x": None, "y": -1.5}]


@pytest.mark.parametrize("arguments", CALLS)
@pytest.mark.parametrize(("family", "form"), [("llama3.1", "json"), ("llama3.2", "python_list")])
def test_ids_of_tool_calls_equal_metas_chat_format(
    real_llama3: edge_llama.Model, family: str, form: str, arguments: dict[str, Any]
) -> None:
    """And a call that is read from what the template wrote is the same again."""
    call = MetaToolCall(call_id="1", tool_name="get_weather", arguments=arguments)
    ends = {"stop_reason": StopReason.end_of_turn, "tool_calls": [call]}
    turns = [RawMessage(role="user", content="Weather?"), RawMessage(role="assistant", content="", **ends)]
    turns.append(RawMessage(role="tool", content='{"degrees": 22}'))
    expected = ChatFormat(MetaTokenizer(RANKS)).encode_dialog_prompt(turns, ToolPromptFormat(form)).tokens
    ours = (ToolCall("get_weather", arguments),)
    asked = [Message("user", "Weather?"), Message("assistant", "", ours)]
    template = ChatTemplate(FAMILIES[family].template, real_llama3.tokenizer, family)
    assert template.tokens([*asked, Message("tool", '{"degrees": 22}')]) == expected
    begun = len(template.tokens(asked[:1]))
    rest = template.tokens(asked)[begun:]
    written = rest[: rest.index(real_llama3.tokenizer.control_tokens["<|eot_id|>"])]
    reader = template.call_parser(frozenset(["get_weather"]))
    reads = [reader.feed(real_llama3.tokenizer.piece(token).decode(errors="replace")) for token in written]
    called = [call for read in (*reads, reader.finish()) for call in read.calls]
    assert [(call.name, call.arguments) for call in called] == [("get_weather", arguments)]


def messages(conversation: list[dict[str, str]]) -> list[Message]:
    return [Message(turn["role"], turn["content"]) for turn in conversation]  # type: ignore[arg-type]


def llama2_dialog(pieces: SentencePieceProcessor, turns: list[dict[str, str]]) -> list[int]:
    """The ids of a chat, as github.com/meta-llama/llama's ``chat_completion`` describes them."""
    if turns[0]["role"] == "system":
        first = f"<<SYS>>\n{turns[0]['content']}\n<</SYS>>\n\n{turns[1]['content']}"
        turns = [{"role": "user", "content": first}, *turns[2:]]
    ids: list[int] = []
    for asked, answered in zip(turns[::2], [*turns[1::2], None], strict=True):
        text = f"[INST] {asked['content'].strip()} [/INST]"
        ids += [pieces.bos_id(), *pieces.encode(text + (f" {answered['content'].strip()} " if answered else ""))]
        ids += [pieces.eos_id()] if answered else []
    return ids


def test_ids_of_llama_2_equal_sentencepiece_and_metas_dialogs(tmp_path: Path) -> None:
    folder = meta_folders.llama2(tmp_path / "llama-2-7b-chat")
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    with edge_llama.open(converted(folder).path, n_ctx=256) as model:
        for text in TORTURE:
            assert model.tokenizer.encode(text) == pieces.encode(text), text
        for conversation in CONVERSATIONS:
            assert model.template.tokens(messages(conversation)) == llama2_dialog(pieces, conversation), conversation


@pytest.mark.parametrize(
    ("name", "make", "template"),
    [
        ("llama-2-7b-chat", meta_folders.llama2, "llama2"),
        ("CodeLlama-7b-Instruct", meta_folders.llama2, "llama2"),
        ("Meta-Llama-3-8B-Instruct", lambda folder: meta_folders.llama3(folder, scaled=False), "llama3"),
        ("Llama3.1-8B-Instruct", meta_folders.llama3, "llama3.1"),
        ("Llama3.1-8B", meta_folders.llama3, None),
        ("llama-2-7b", meta_folders.llama2, None),
    ],
)
def test_a_template_is_chosen_when_the_name_says_chat_and_the_choice_is_told(
    name: str, make: Callable[[Path], Path], template: str | None, tmp_path: Path
) -> None:
    checkpoint = converters.plan(make(tmp_path / name), tmp_path / "x.gguf").checkpoint
    assert bool(checkpoint.vocabulary.chat_templates) == bool(template)
    assert checkpoint.notes["chat template"].startswith(f"{template}, by the name" if template else "none, as the name")


def test_a_given_template_replaces_any_other(llama3: Path, llama2: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ messages[0]['content'] }} 🦙", "utf-8")

    def template(source: Path, given: Any) -> str:
        header = converted_to(tmp_path / "x.gguf", source, given)
        return header.get("tokenizer.chat_template", str, "")

    assert template(llama3, mine) == template(meta_folders.llama2(tmp_path / "a"), str(mine)) == mine.read_text("utf-8")
    assert "Cutting Knowledge Date" in template(llama3, None)
    assert template(llama3, "none") == template(meta_folders.llama2(tmp_path / "chat"), "none") == ""
    assert "'ipython'" in template(llama3, "llama3.1")
    assert "[INST]" in template(llama2, "llama2")


def converted_to(output: Path, source: Path, template: Any) -> Header:
    converters.convert(source, output, quant="f16", chat_template=template, force=True)
    return read_header(output)


def test_a_template_that_cannot_be_is_a_typed_error(llama2: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.jinja").write_bytes(b"\xff\xfe")
    for given, expected in [
        ("llama9", "families: llama2, llama3"),
        (tmp_path / "latin.jinja", "cannot be read"),
        (tmp_path, "cannot be read"),
        ("llama3", r"no <\|start_header_id\|>"),
    ]:
        with pytest.raises(OptionError, match=expected):
            converters.plan(llama2, tmp_path / "x.gguf", chat_template=given)
