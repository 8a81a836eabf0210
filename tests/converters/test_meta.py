"""Meta's folders: the same file as from Hugging Face's, the answers of Meta's own code, the ids of its tokenizer."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import llama_models
import meta_folders
import numpy as np
import pytest
import torch
from engines import last_logits
from fairscale.nn.model_parallel.initialize import destroy_model_parallel, initialize_model_parallel
from llama_models.checkpoint import reshard_mp
from llama_models.datatypes import RawMessage
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.model import Transformer, apply_scaling
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from sentencepiece import SentencePieceProcessor
from texts import CONVERSATIONS, TORTURE
from transformers import AutoModelForCausalLM, AutoTokenizer

import converters
import edge_llama
from edge_llama import CheckpointError, Message, OptionError
from edge_llama.gguf import Header, read_header

SHAPE = checkpoints.Shape(kv_heads=2)
RANKS = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"


def converted(folder: Path, **options: Any) -> Header:
    """The header of the f32 file that the folder becomes."""
    output = folder.with_name(f"{folder.name}.gguf")
    converters.convert(folder, output, quant="f32", **options)
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
    different = {key for key in ours.fields.keys() | theirs.fields.keys() if not same(key, ours, theirs)}
    assert different == {"tokenizer.chat_template", "general.sampling.temp", "general.sampling.top_p"}


def same(key: str, one: Header, other: Header) -> bool:
    if key not in one.fields or key not in other.fields:
        return False
    return np.array_equal(one.fields[key].data, other.fields[key].data)


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


def test_merges_derived_from_ranks_are_those_that_were_trained(tmp_path: Path) -> None:
    header = converted(meta_folders.llama3(tmp_path / "meta"))
    trained = json.loads(meta_folders.llama3_tokenizer().to_str())["model"]["merges"]
    assert list(header.fields["tokenizer.ggml.merges"].data) == [" ".join(merge) for merge in trained]


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


def test_ids_of_chats_equal_metas_chat_format(real_llama3: edge_llama.Model) -> None:
    reference = ChatFormat(MetaTokenizer(RANKS))
    for conversation in CONVERSATIONS:
        expected = reference.encode_dialog_prompt([RawMessage(**turn) for turn in conversation]).tokens
        assert real_llama3.template.tokens(messages(conversation)) == expected, conversation


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
    assert model.generation_config.eos_token_id == [1001, 1008, 1009]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with edge_llama.open(header.path, n_ctx=256) as ours:
        for conversation in CONVERSATIONS:
            ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
            assert ours.template.tokens(messages(conversation)) == ids


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


def edited_params(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        params = {**json.loads((folder / "params.json").read_text()), **fields}
        (folder / "params.json").write_text(json.dumps({k: v for k, v in params.items() if v != "REMOVE"}))

    return edit


def edited_shard(edit: Callable[[dict[str, torch.Tensor]], object], shard: int = 1) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / f"consolidated.{shard:02}.pth"
        tensors = torch.load(path)
        edit(tensors)
        torch.save(tensors, path)

    return rewrite


def edited_ranks(edit: Callable[[list[bytes]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        lines = meta_folders.small_ranks().splitlines()
        edit(lines)
        (folder / "tokenizer.model").write_bytes(b"\n".join(lines))

    return rewrite


def replaced(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


WQ, WO = "layers.1.attention.wq.weight", "layers.1.attention.wo.weight"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "params.json missing": (lambda folder: (folder / "params.json").unlink(), r"params\.json is missing"),
    "params.json no JSON": (replaced("params.json", b"{"), r"params\.json: not valid JSON"),
    "params.json nested without end": (replaced("params.json", b"[" * 200_000), r"params\.json: not valid JSON"),
    "a field of a wrong type": (edited_params(n_layers="3"), r"params\.json: n_layers is '3'"),
    "a field missing": (edited_params(dim="REMOVE"), r"params\.json: dim is missing"),
    "a negative size": (edited_params(n_heads=-4), "n_heads is -4"),
    "NaN eps": (edited_params(norm_eps=float("nan")), "norm_eps is nan"),
    "an eps beyond all floats": (edited_params(norm_eps=10**400), "norm_eps is 1000"),
    "heads that do not divide": (edited_params(n_heads=3), "does not divide dim 128"),
    "KV heads that do not divide": (edited_params(n_kv_heads=3), "does not divide 4 heads"),
    "another count of KV heads": (edited_params(n_kv_heads=4), r"wk\.weight.*implies \[128, 128\] together"),
    "another width": (edited_params(dim=256), "the embedding has 628 rows.*dim is wrong"),
    "a multiplier that disagrees": (
        edited_params(ffn_dim_multiplier=1.3),
        "feed-forward width of 448, the weights have 352",
    ),
    "more layers than there are": (edited_params(n_layers=4), r"layers\.3\..*missing"),
    "fewer layers than there are": (edited_params(n_layers=2), r"layers\.2\..*not part"),
    "another vocab_size": (edited_params(vocab_size=1255), "vocab_size is 1255, the embedding has 1256 rows"),
    "a mixture of experts": (edited_params(moe_args={"num_experts": 16}), "moe_args is set"),
    "vision": (edited_params(vision_chunk_size=448), "vision_chunk_size is set"),
    "quantized": (edited_params(quantization_args={"group_size": 32}), "quantized weights"),
    "the first shard missing": (
        lambda folder: (folder / "consolidated.00.pth").unlink(),
        r"consolidated\.00\.pth is mis",
    ),
    "the last shard missing": (lambda folder: (folder / "consolidated.01.pth").unlink(), "a shard is missing"),
    "a shard twice": (
        lambda folder: shutil.copy(folder / "consolidated.00.pth", folder / "consolidated.02.pth"),
        "embedding has 1884 rows",
    ),
    "a tensor missing in one shard": (edited_shard(lambda t: t.pop(WQ)), rf"01\.pth: tensor '{WQ}' is missing"),
    "a tensor missing in all": (
        lambda folder: [edited_shard(lambda t: t.pop(WQ), shard)(folder) for shard in (0, 1)],
        "layers.1.self_attn.q_proj.weight' is missing",
    ),
    "a tensor too many": (
        lambda folder: [edited_shard(lambda t: t.update(x=torch.ones(2)), shard)(folder) for shard in (0, 1)],
        "'x' is not part of a Llama in Meta's format",
    ),
    "a share of another shape": (edited_shard(lambda t: t.update({WO: torch.ones(128, 65)})), rf"{WO}.*\[128, 65\]"),
    "a share of three dimensions": (
        edited_shard(lambda t: t.update({WO: torch.ones(128, 8, 8)})),
        rf"{WO}.*\[128, 8, 8\]",
    ),
    "a share of another dtype": (edited_shard(lambda t: t.update({WO: t[WO].half()})), rf"{WO}.* several dtypes"),
    "integers": (edited_shard(lambda t: t.update({WO: t[WO].long()})), rf"01\.pth: tensor '{WO}' has dtype Long"),
    "a norm of another size": (
        edited_shard(lambda t: t.update({"norm.weight": torch.ones(64)})),
        r"norm\.weight.*\[64\]",
    ),
    "NaN": (edited_shard(lambda t: t[WO].fill_(float("nan"))), r"blk\.1\.attn_output\.weight.* NaN"),
    "a shard that is a Git LFS pointer": (replaced("consolidated.01.pth", b"version https://git-lfs"), "git lfs pull"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), r"tokenizer\.model is missing"),
    "an empty tokenizer": (replaced("tokenizer.model", b""), "not a sentencepiece model"),
    "a corrupt tokenizer": (replaced("tokenizer.model", b"junk" * 99), "not a sentencepiece model"),
    "ranks with a bad line": (edited_ranks(lambda lines: lines.__setitem__(6, b"??")), "line 7 is b'\\?\\?'"),
    "ranks with bad base64": (edited_ranks(lambda lines: lines.__setitem__(6, b"abc 6")), "line 7 is b'abc 6'"),
    "ranks with a gap": (edited_ranks(lambda lines: lines.pop(300)), "line 301 .*rank 301, expected .*rank 300"),
    "ranks with a token twice": (
        edited_ranks(lambda lines: lines.__setitem__(9, lines[8].split()[0] + b" 9")),
        "line 10 .*expected a new token",
    ),
    "ranks with an endless token": (
        edited_ranks(lambda lines: lines.append(base64.b64encode(b"x" * 1000) + b" 1000")),
        "line 1,001 ",
    ),
    "ranks without a byte": (
        edited_ranks(lambda lines: lines.__setitem__(slice(None), lines[:200])),
        "no token for the byte",
    ),
    "more ranks than the embedding has rows": (
        edited_ranks(lambda lines: lines.append(base64.b64encode(b"\xff\xfe\xfd") + b" 1000")),
        "1,001 tokens and 256 special ones but the embedding has 1,256 rows",
    ),
}


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return meta_folders.llama3(tmp_path_factory.mktemp("two") / "meta", shards=2, tied=False)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_a_typed_error_and_leaves_nothing(name: str, two_shards: Path, tmp_path: Path) -> None:
    spoil, expected = BAD[name]
    folder = tmp_path / "meta"
    shutil.copytree(two_shards, folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=expected) as caught:
        converters.convert(folder, tmp_path / "x.gguf")
    assert str(folder) in str(caught.value) or "blk." in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]
