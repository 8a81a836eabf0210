"""Meta's folders: the same file as from Hugging Face's, the answers of Meta's own code."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import meta_folders
import numpy as np
import pytest
import torch
from engines import last_logits
from fairscale.nn.model_parallel.initialize import destroy_model_parallel, initialize_model_parallel
from llama_models.checkpoint import reshard_mp
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.model import Transformer, apply_scaling
from quantizer import same
from texts import CONVERSATIONS
from transformers import AutoModelForCausalLM, AutoTokenizer

import converters
import edge_llama
from converters.architectures.llama_meta import MetaLlama
from edge_llama import Message
from edge_llama.files.gguf import Header, read_header
from edge_llama.files.gguf_text import END_TOKENS
from edge_llama.files.integrity import ROOT

SHAPE = checkpoints.Shape(kv_heads=2)


def converted(folder: Path) -> Header:
    """The header of the f32 file that the folder becomes."""
    output = folder.with_name(f"{folder.name}.gguf")
    converters.convert(folder, output, quant="f32")
    return read_header(output)


def tensors_and_data(header: Header) -> tuple[list[tuple[str, tuple[int, ...], str, int]], bytes]:
    table = [(t.name, t.shape, t.format.name, t.offset - header.data_offset) for t in header.tensors]
    return table, header.path.read_bytes()[header.data_offset :]


FAMILIES: dict[str, tuple[Callable[..., Path], Callable[..., Path]]] = {
    "llama 2": (meta_folders.llama2, checkpoints.llama2),
    "llama 3": (
        lambda folder, **options: meta_folders.llama3(folder, scaled=False, tied=False, **options),
        lambda folder, **options: checkpoints.llama3(folder, rope_scaling=False, tied=False, padding=246, **options),
    ),
    "llama 3.2": (
        meta_folders.llama3,
        lambda folder, **options: checkpoints.llama3(folder, padding=246, **options),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_files_equal_those_from_hugging_faces_folder(family: str, tmp_path: Path) -> None:
    """However many shards: 4 of 2 KV heads hold each twice."""
    from_meta, from_hugging_face = FAMILIES[family]
    options: dict[str, Any] = {"shape": SHAPE, "dtype": "BF16", "seed": 5}
    expected = tensors_and_data(converted(from_hugging_face(tmp_path / "hf", **options)))
    for shards in (1, 2, 4):
        found = converted(from_meta(tmp_path / f"meta-{shards}", shards=shards, **options))
        assert tensors_and_data(found) == expected, shards


def test_hyperparameters_and_vocabulary_of_llama_2_equal_those_from_hugging_faces_folder(tmp_path: Path) -> None:
    ours = converted(meta_folders.llama2(tmp_path / "meta" / "llama-2-chat"))
    theirs = converted(checkpoints.llama2(tmp_path / "hf" / "llama-2-chat"))
    keys = {key for key in ours.fields.keys() | theirs.fields.keys() if key not in (ROOT, END_TOKENS)}
    different = {key for key in keys if not same(ours.fields.get(key), theirs.fields.get(key))}
    assert different == {"tokenizer.chat_template", "general.sampling.temp", "general.sampling.top_p"}


def test_a_vocab_size_of_minus_1_is_the_tokenizers_and_rope_freqs_are_ignored(tmp_path: Path) -> None:
    """As in Meta's Llama 2."""
    folder = meta_folders.llama2(tmp_path / "llama-2")
    assert json.loads((folder / "params.json").read_text())["vocab_size"] == -1
    assert "rope.freqs" in torch.load(folder / "consolidated.00.pth")
    header = converted(folder)
    assert header.fields["llama.vocab_size"].data == len(header.fields["tokenizer.ggml.tokens"].data)
    assert not any("freqs" in tensor.name for tensor in header.tensors)


@pytest.fixture(scope="module")
def model_parallel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Meta's model code wants a group of processes: here of one."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
    initialize_model_parallel(1)
    yield
    destroy_model_parallel()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("make", "shards"),
    [
        (meta_folders.llama2, 1),
        (lambda folder, **options: meta_folders.llama3(folder, tied=False, **options), 2),
        (lambda folder, **options: meta_folders.llama3(folder, tied=False, scaled=False, **options), 1),
    ],
    ids=["llama 2", "llama 3.1, two shards", "llama 3"],
)
def test_logits_equal_those_of_metas_own_code(
    make: Callable[..., Path], shards: int, model_parallel: None, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Meta's ``Transformer`` on the CPU in f32, shards joined by Meta's ``reshard_mp``. Tolerance 1e-3."""
    folder = make(tmp_path / "meta", shards=shards)
    header = converted(folder)
    params = json.loads((folder / "params.json").read_text())
    n_vocab = len(header.fields["tokenizer.ggml.tokens"].data)
    args = ModelArgs(**{"rope_theta": 10000.0, **params, "vocab_size": n_vocab, "max_seq_len": 64, "max_batch_size": 1})
    parts = [torch.load(folder / f"consolidated.{index:02}.pth") for index in range(shards)]
    for part in parts:
        part.pop("rope.freqs", None)
    reference = Transformer(args)
    reference.load_state_dict(reshard_mp(parts, size=1, rank=0) if shards > 1 else parts[0])
    tokens = [int(token) for token in rng.integers(3, 500, 40)]
    expected = reference(torch.tensor([tokens]), 0)[0, -1].numpy()
    assert np.abs(last_logits(header.path, tokens) - expected).max() < 1e-3


def test_rows_read_in_any_slices_are_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    """Also across the border of two shards."""
    folder = meta_folders.llama2(tmp_path / "meta", shards=4)
    for tensor in converters.plan(folder, tmp_path / "x.gguf").checkpoint.tensors.values():
        cuts = rng.integers(0, tensor.rows // tensor.step + 1, 5) * tensor.step
        borders = sorted({0, *map(int, cuts), tensor.rows})
        slices = [tensor.read(start, stop) for start, stop in pairwise(borders)]
        assert np.array_equal(np.vstack(slices), tensor.read(0, tensor.rows)), tensor.name


@pytest.mark.parametrize(
    ("params", "width"),
    [
        ({"dim": 4096, "multiple_of": 256}, 11008),  # Llama 2 7B
        ({"dim": 5120, "multiple_of": 256}, 13824),  # Llama 2 13B
        ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),  # 70B
        ({"dim": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),  # Llama 3 8B
        ({"dim": 2048, "multiple_of": 256, "ffn_dim_multiplier": 1.5}, 8192),  # Llama 3.2 1B
        ({"dim": 3072, "multiple_of": 256, "ffn_dim_multiplier": 1.0}, 8192),  # Llama 3.2 3B
        ({"dim": 16384, "multiple_of": 4096, "ffn_dim_multiplier": 1.2}, 53248),  # Llama 3.1 405B
    ],
)
def test_the_feed_forward_width_is_that_of_the_published_models(params: dict[str, Any], width: int) -> None:
    assert MetaLlama.read({"n_layers": 1, "n_heads": 32, "norm_eps": 1e-5, **params}, Path()).n_ff == width


def test_scaled_frequencies_of_llama_3_1_are_metas(tmp_path: Path) -> None:
    header = converted(meta_folders.llama3(tmp_path / "meta", tied=False))
    info = next(tensor for tensor in header.tensors if tensor.name == "rope_freqs.weight")
    factors = np.fromfile(header.path, np.float32, info.shape[0], offset=info.offset)
    frequencies = 1.0 / 500000.0 ** (torch.arange(0, SHAPE.head, 2).float() / SHAPE.head)
    assert np.allclose(factors, (frequencies / apply_scaling(frequencies)).numpy(), rtol=1e-5)
    assert factors.max() == 8


def test_what_params_json_leaves_open_is_chosen_as_in_the_published_conversions(tmp_path: Path) -> None:
    for make, context, theta in [
        (meta_folders.llama2, 4096, 1e4),
        (lambda folder: meta_folders.llama3(folder, scaled=False, tied=False), 8192, 5e5),
        (lambda folder: meta_folders.llama3(folder, tied=False), 131072, 5e5),
    ]:
        folder = tmp_path / str(context)
        config = converters.plan(make(folder), tmp_path / "x.gguf").checkpoint.config
        assert (config["max_position_embeddings"], config["rope_theta"]) == (context, theta)


def test_an_output_that_repeats_the_embedding_is_written_once(tmp_path: Path) -> None:
    """Llama 3.2 1B and 3B; as in the GGUF files from Hugging Face's folders."""
    plan = converters.plan(meta_folders.llama3(tmp_path / "meta", shards=2), tmp_path / "x.gguf")
    assert "output.weight" not in {entry.tensor.name for entry in plan.layout.entries}
    assert plan.checkpoint.config["rope_scaling"]["factor"] == 32
    assert "factor 32, as in Llama 3.2" in plan.checkpoint.notes["rotary scaling"]


def test_in_a_hugging_face_repository_the_model_is_named_after_it(tmp_path: Path) -> None:
    snapshot = "models--meta-llama--Llama-3.2-1B-Instruct/snapshots/" + "0123456789" * 4
    for place, name in [("Llama-3.2-1B/original", "Llama-3.2-1B"), (f"{snapshot}/original", "Llama-3.2-1B-Instruct")]:
        folder = meta_folders.llama3(tmp_path / place)
        assert converters.plan(folder, tmp_path / "x.gguf").checkpoint.name == name


def test_tokenizer_model_may_lie_beside_the_folder_as_llama_2s_download_has_it(tmp_path: Path) -> None:
    folder = meta_folders.llama2(tmp_path / "llama-2-7b")
    (folder / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    assert len(converters.plan(folder, tmp_path / "x.gguf").checkpoint.vocabulary.tokens) == 900


def test_written_out_for_transformers_it_is_the_same_model(tmp_path: Path) -> None:
    """Llama 3 to a Hugging Face folder: its logits, its ids, its ends of turn."""
    folder = meta_folders.llama3(tmp_path / "Llama-3-tiny-Instruct", shards=2, scaled=False)
    header = converted(folder)
    converters.convert(folder, tmp_path / "out", to="safetensors", quant="f32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = list(range(100, 140))
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0, -1].numpy()
    assert np.abs(last_logits(header.path, tokens) - expected).max() < 1e-3
    assert model.generation_config.eos_token_id == [1001, 1009, 1008]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with edge_llama.open(header.path, n_ctx=256) as ours:
        for conversation in CONVERSATIONS:
            ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
            assert ours.template.tokens([Message(**turn) for turn in conversation]) == ids
