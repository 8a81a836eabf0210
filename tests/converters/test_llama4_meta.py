"""Meta's original Llama 4 folders: the same file as from Hugging Face's, the ids of Meta's own code."""

import json
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import llama4
import llama_models
import llama_models.llama3.tool_utils
import numpy as np
import pytest
import torch
from llama4_reference import Reference
from llama_models.datatypes import RawMessage, StopReason, ToolPromptFormat
from llama_models.datatypes import ToolCall as MetaToolCall
from llama_models.llama4.tokenizer import Tokenizer as MetaTokenizer
from near_ties import decided
from quantizer import data, differing_fields, table
from refusals import refusal
from texts import CONVERSATIONS, TORTURE
from transformers import AutoModelForImageTextToText, AutoTokenizer

import converters
import edge_llama
from converters.architectures.llama4_meta import MetaLlama4
from converters.architectures.llama_families import FAMILIES
from edge_llama import Message, ToolCall
from edge_llama.errors import CheckpointError
from edge_llama.files.gguf import Header, read_header
from edge_llama.prompts.chat_template import ChatTemplate

_TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")  # for pictures alone
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in _TORCHVISION}):
    from llama_models.llama4.chat_format import ChatFormat

RANKS = Path(llama_models.__file__).parent / "llama4" / "tokenizer.model"
MAKERS: dict[str, Callable[..., Path]] = {
    "scout": llama4.scout,
    "maverick": llama4.maverick,
    "text only": llama4.text_only,
}


def converted(folder: Path, output: Path) -> Header:
    converters.convert(folder, output, quant="f32", tower="text", force=True)
    return read_header(output)


@pytest.mark.parametrize("name", MAKERS)
def test_files_equal_those_from_hugging_faces_folder(name: str, tmp_path: Path) -> None:
    """Under split and under fused names, in one shard and in two; the vision tower's tensors are there too."""
    source = MAKERS[name](tmp_path / "hf", dtype="BF16", seed=3, num_hidden_layers=5)
    expected = converted(source, tmp_path / "hf.gguf")
    theirs = converters.plan(source, tmp_path / "x.gguf", tower="text").checkpoint.tensors
    for fused, shards in [(False, 1), (False, 2), (True, 1), (True, 2)]:
        folder = llama4.meta(tmp_path / f"{fused}-{shards}", source, fused=fused, shards=shards)
        found = converted(folder, tmp_path / "meta.gguf")
        assert table(found) == table(expected)
        assert data(found) == data(expected)
        keys = {difference.split()[0] for difference in differing_fields(found, expected)}
        # What generation_config.json and tokenizer_config.json say, and params.json doesn't; and all merges of ranks,
        # of which training leaves one a token.
        assert keys == {
            "tokenizer.ggml.merges",
            *("general.sampling.temp", "general.sampling.top_p", "tokenizer.chat_template"),
            *(f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")),
        }
        ours = converters.plan(folder, tmp_path / "x.gguf", tower="text").checkpoint.tensors
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert tensor.shape == theirs[key].shape
            assert np.array_equal(tensor.read(0, tensor.rows), theirs[key].read(0, tensor.rows)), key


def test_rows_and_stripes_read_in_any_slices_are_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    """Also across the borders of shards."""
    folder = llama4.meta(tmp_path / "meta", llama4.scout(tmp_path / "hf"), fused=True, shards=2)
    for tensor in converters.plan(folder, tmp_path / "x.gguf", tower="text").checkpoint.tensors.values():
        whole = tensor.read(0, tensor.rows)
        cuts = rng.integers(0, tensor.rows // tensor.step + 1, 5) * tensor.step
        borders = sorted({0, *map(int, cuts), tensor.rows})
        assert np.array_equal(np.vstack([tensor.read(*pair) for pair in pairwise(borders)]), whole), tensor.name
        first, last = sorted(map(int, rng.choice(whole.shape[1] + 1, 2, replace=False)))
        for start, stop in pairwise(borders):
            found = tensor.stripe(start, stop, first, last)
            assert np.array_equal(found, whole[start:stop, first:last]), tensor.name


def test_settings_become_the_published_config(tmp_path: Path) -> None:
    """Compared with the Hugging Face folder that params.json was made from."""
    for name, make in MAKERS.items():
        source = make(tmp_path / name)
        folder = llama4.meta(tmp_path / f"{name}-meta", source, fused=False)
        found = converters.plan(folder, tmp_path / "x.gguf", tower="text").checkpoint.config
        expected = json.loads((source / "config.json").read_text())
        for ours, theirs in [
            (found.get("text_config", found), expected.get("text_config", expected)),
            (found.get("vision_config", {}), expected.get("vision_config", {})),
        ]:
            shared = ours.keys() & theirs.keys() - {"no_rope_layers"}  # [] means every fourth without
            assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize(
    ("params", "widths"),
    [
        ({"n_kv_heads": 8, "multiple_of": 2048, "ffn_exp": 4.0, "ffn_dim_multiplier": 1.2}, (8192, 16384)),
    ],
)
def test_the_widths_are_those_of_the_published_models(params: dict[str, Any], widths: tuple[int, int]) -> None:
    """Scout's and Maverick's experts, and the dense layers of the latter."""
    sizes = {"dim": 5120, "n_layers": 48, "n_heads": 40, "moe_args": {"num_experts": 16}}
    found = MetaLlama4.read(sizes | params, Path())
    assert (found.n_ff, found.base.n_ff) == widths


@pytest.fixture(scope="module")
def real_llama4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[edge_llama.Model]:
    """A small model with Llama 4's real vocabulary of 202,048 tokens, open."""
    root = tmp_path_factory.mktemp("real")
    source = llama4.text_only(root / "hf", vocab_size=202048, dtype="F16", hidden_size=32, head_dim=8)
    folder = llama4.meta(root / "Llama-4-tiny-Instruct", source, fused=False)
    (folder / "tokenizer.model").write_bytes(RANKS.read_bytes())
    converters.convert(folder, root / "a.gguf", quant="f16")
    with edge_llama.open(root / "a.gguf", n_ctx=256) as model:
        yield model


def test_ids_equal_metas_tokenizer_with_llama_4s_real_vocabulary(real_llama4: edge_llama.Model) -> None:
    reference = MetaTokenizer(RANKS)
    for text in TORTURE:
        assert real_llama4.tokenizer.encode(text) == reference.encode(text, bos=False, eos=False), text
    assert real_llama4.tokenizer.control_tokens == reference.special_tokens
    assert real_llama4.tokenizer.bos == reference.bos_id
    assert all(real_llama4.tokenizer.is_end(token) for token in reference.stop_tokens)


def test_ids_of_random_texts_equal_metas_tokenizer(real_llama4: edge_llama.Model, rng: np.random.Generator) -> None:
    """Pieces of the torture list in random order, cut anywhere."""
    reference = MetaTokenizer(RANKS)
    for _ in range(300):
        joined = "".join(rng.choice(TORTURE, 12))
        text = joined[int(rng.integers(20)) : int(rng.integers(20, 400))]
        assert real_llama4.tokenizer.encode(text) == reference.encode(text, bos=False, eos=False), text


def messages(conversation: list[dict[str, str]]) -> list[Message]:
    return [Message(**turn) for turn in conversation]


def test_ids_of_chats_equal_metas_chat_format(real_llama4: edge_llama.Model) -> None:
    reference = ChatFormat(MetaTokenizer(RANKS))
    for conversation in CONVERSATIONS:
        expected = reference.encode_dialog_prompt([RawMessage(**turn) for turn in conversation]).tokens
        assert real_llama4.template.tokens(messages(conversation)) == expected, conversation


@pytest.mark.parametrize("arguments", [{}, {"city": "Bonn", "days": 3}, {"on": True, "x": None, "y": -1.5}])
def test_ids_of_tool_calls_equal_metas_chat_format(real_llama4: edge_llama.Model, arguments: dict[str, Any]) -> None:
    """And a call that is read from what the template wrote is the same again."""
    call = MetaToolCall(call_id="1", tool_name="get_weather", arguments=arguments)
    ends = {"stop_reason": StopReason.end_of_turn, "tool_calls": [call]}
    turns = [RawMessage(role="user", content="Weather?"), RawMessage(role="assistant", content="", **ends)]
    turns.append(RawMessage(role="tool", content='{"degrees": 22}'))
    reference = ChatFormat(MetaTokenizer(RANKS))
    expected = reference.encode_dialog_prompt(turns, ToolPromptFormat.python_list).tokens
    ours = (ToolCall("get_weather", arguments),)
    asked = [Message("user", "Weather?"), Message("assistant", "", ours)]
    template = ChatTemplate(FAMILIES["llama4"].template, real_llama4.tokenizer, "llama4")
    assert template.tokens([*asked, Message("tool", '{"degrees": 22}')]) == expected
    begun = len(template.tokens(asked[:1]))
    rest = template.tokens(asked)[begun:]
    written = rest[: rest.index(real_llama4.tokenizer.control_tokens["<|eom|>"])]
    reader = template.call_parser(frozenset(["get_weather"]))
    reads = [reader.feed(real_llama4.tokenizer.piece(token).decode(errors="replace")) for token in written]
    called = [call for read in (*reads, reader.finish()) for call in read.calls]
    assert [(call.name, call.arguments) for call in called] == [("get_weather", arguments)]


def test_a_picture_stands_where_the_message_has_it(tmp_path: Path) -> None:
    """By transformers, with the template of a folder written from Meta's; who renders expands the one token."""
    folder = llama4.meta(tmp_path / "Llama-4-tiny-Instruct", llama4.scout(tmp_path / "hf"), fused=True, shards=2)
    converters.convert(folder, tmp_path / "out", to="safetensors", quant="f32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    image, text = {"type": "image"}, {"type": "text", "text": "Which?"}
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": [text, image, image, text]}], tokenize=False)
    assert rendered == "<|begin_of_text|><|header_start|>user<|header_end|>\n\nWhich?<|image|><|image|>Which?<|eot|>"
    system = [{"role": "system", "content": [text]}, {"role": "user", "content": "x"}]
    assert "\n\nWhich?<|eot|>" in tokenizer.apply_chat_template(system, tokenize=False, tools=[{"name": "f"}])


def test_written_out_for_transformers_it_is_the_same_model(tmp_path: Path, rng: np.random.Generator) -> None:
    """Both towers: transformers finds every tensor, and its logits are those of the original."""
    source = llama4.scout(tmp_path / "hf")
    folder = llama4.meta(tmp_path / "meta", source, fused=True, shards=2)
    converters.convert(folder, tmp_path / "out", to="safetensors", quant="f32")
    ours, theirs = (
        converters.plan(at, tmp_path / "x.gguf", tower="text").checkpoint.vocabulary
        for at in (tmp_path / "out", source)
    )
    assert (ours.tokens, ours.pre) == (theirs.tokens, "llama4")
    assert set(ours.merges or ()) >= set(theirs.merges or ()) > set()
    model, found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ends = [ours.tokens.index(text) for text in ("<|end_of_text|>", "<|eot|>", "<|eom|>")]
    assert model.generation_config.eos_token_id == ends
    tokens = decided(model, lambda: rng.integers(3, 700, 40).tolist())
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([tokens])).logits[0]
    assert np.abs(logits.numpy() - Reference(source).logits(tokens)).max() < 1e-3


def test_metas_ranks_beside_a_tokenizer_json_change_nothing(tmp_path: Path) -> None:
    folder = llama4.text_only(tmp_path / "hf")
    expected = converters.plan(folder, tmp_path / "x.gguf", tower="text").checkpoint.vocabulary
    (folder / "tokenizer.model").write_bytes(RANKS.read_bytes())
    assert converters.plan(folder, tmp_path / "x.gguf", tower="text").checkpoint.vocabulary == expected


def edited_params(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        params = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps(params | changes))

    return edit


def edited_shard(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = torch.load(folder / "consolidated.01.pth")
        edit(tensors)
        torch.save(tensors, folder / "consolidated.01.pth")

    return rewrite


AT = "layers.1.feed_forward."
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no number of experts": (edited_params(moe_args={}), "moe_args: num_experts is missing"),
    "another number of experts": (
        edited_params(moe_args={"num_experts": 8}),
        r"experts\.w1' has the shapes \[4, 64, 48\], ",
    ),
    "layers without end": (edited_params(n_layers=2**31), "n_layers is 2147483648, expected 4096 at most"),
    "another width": (edited_params(ffn_exp=8.0), r"experts\.w1' has the shapes .*params.json implies"),
    "pictures that are no square": (
        edited_params(vision_args={"image_size": {"height": 56, "width": 28}, "dim": 48}),
        "vision_args: image_size is",
    ),
    "vision that is text": (edited_params(vision_args="yes"), "vision_args is 'yes'"),
    "no vision": (edited_params(vision_args=None), "'vision_.*is not part of a Llama 4"),
    "quantized": (edited_params(quantization_args={"scheme": "int4"}), "quantized weights"),
    "another chunk": (edited_params(attention_chunk_size=4096), "attention_chunk_size is 4096; in GGUF"),
    "rotary everywhere": (edited_params(nope_layer_interval=None), "no_rope_layers is .*in GGUF"),
    "an expert's matrix gone": (
        edited_shard(lambda tensors: tensors.pop(AT + "experts.w3")),
        r"experts\.w3' is missing, consolidated\.00\.pth has it",
    ),
    "experts of another length": (
        edited_shard(lambda tensors: tensors.update({AT + "experts.w2": tensors[AT + "experts.w2"][:, :10].clone()})),
        r"experts\.w2' has the shapes \[4, 48, 64\], \[4, 10, 64\] in 2 shards",
    ),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    return llama4.meta(root / "meta", llama4.scout(root / "hf"), fused=False, shards=2)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_a_typed_error(name: str, published: Path, tmp_path: Path) -> None:
    edit, expected = BAD[name]
    folder = tmp_path / "meta"
    folder.mkdir()
    for file in published.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit(folder)
    with refusal(CheckpointError, expected, folder):
        converters.plan(folder, tmp_path / "x.gguf", tower="text")


@pytest.mark.parametrize("rest", ["feed_forward.w1.weight", "attention.wq.weight"])
def test_a_tensor_under_both_names_is_refused(rest: str, tmp_path: Path) -> None:
    folder = llama4.meta(tmp_path / "meta", llama4.maverick(tmp_path / "hf", num_local_experts=8), fused=True)
    path = folder / "consolidated.00.pth"
    tensors = torch.load(path, weights_only=False)
    torch.save(tensors | {f"layers.0.{rest}": torch.zeros(4, 4)}, path)
    with refusal(CheckpointError, f"layers.0.{rest}' is there twice", folder):
        converters.plan(folder, tmp_path / "x.gguf", tower="text")
