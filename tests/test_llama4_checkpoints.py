"""The small Llama 4 checkpoints that other tests use are what they say they are."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama4
import numpy as np
import pytest
import torch
from fairscale.nn.model_parallel.initialize import destroy_model_parallel, initialize_model_parallel
from llama4_reference import Reference
from llama_models.checkpoint import convert_moe_weights, reshard_mp
from llama_models.llama4.args import ModelArgs
from llama_models.llama4.datatypes import MaskedEmbedding, TransformerInput
from llama_models.llama4.model import Transformer
from llama_models.llama4.tokenizer import Tokenizer
from PIL import Image
from texts import TORTURE
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]}]


@pytest.fixture
def picture(rng: np.random.Generator) -> Image.Image:
    """Of six tiles and the global one."""
    return Image.fromarray(rng.integers(0, 256, (70, 130, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "make",
    [
        llama4.scout,
        lambda folder: llama4.scout(folder, dtype="F16", shards=3, **llama4.K_QUANTS),
        lambda folder: llama4.scout(folder, tie_word_embeddings=True, vision={"image_size": 84}),
        lambda folder: llama4.maverick(folder, dtype="BF16"),
        llama4.text_only,
    ],
    ids=["scout", "wide", "tied", "maverick", "text only"],
)
def test_transformers_finds_every_tensor_in_its_shape_and_no_other(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "x")
    auto = AutoModelForCausalLM if AutoConfig.from_pretrained(folder).model_type == "llama4_text" else None
    _, found = (auto or AutoModelForImageTextToText).from_pretrained(folder, output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("make", [llama4.scout, llama4.maverick], ids=["scout", "maverick"])
def test_logits_spread_experts_differ_and_the_picture_counts(
    make: Callable[..., Path], tmp_path: Path, picture: Image.Image
) -> None:
    reference = Reference(make(tmp_path / "x"))
    ids, tiles = reference.inputs(QUESTION, [picture])
    assert tiles is not None
    assert len(tiles) == 7
    logits = reference.logits(ids, tiles)
    assert 1 < logits.std() < 6
    assert np.abs(reference.logits(ids, tiles[::-1].copy())[-1] - logits[-1]).max() > 0.1
    with torch.inference_mode():
        text = reference.model.language_model.model
        hidden = text.embed_tokens(torch.tensor([ids]))
        layer = next(layer for layer in text.layers if layer.is_moe_layer)
        chosen = layer.feed_forward.router(hidden[0])[1].argmax(-1)
    assert len(set(chosen.tolist())) > 2


@pytest.fixture(scope="module")
def metas_own_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """It wants a group of processes, here of one, and a GPU for its cache, here none."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
    initialize_model_parallel(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
        yield
    destroy_model_parallel()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", [llama4.scout, llama4.maverick], ids=["scout", "maverick"])
@pytest.mark.parametrize(("fused", "shards"), [(False, 1), (True, 1), (True, 2)])
def test_metas_form_gives_the_same_logits_in_metas_own_code(
    make: Callable[..., Path], fused: bool, shards: int, metas_own_code: None, tmp_path: Path, picture: Image.Image
) -> None:
    """Meta's ``Transformer`` in f32, shards joined by Meta's ``reshard_mp``, against transformers. Tolerance 1e-3."""
    source = make(tmp_path / "hf")
    folder = llama4.meta(tmp_path / "meta", source, fused=fused, shards=shards)
    reference = Reference(source)
    ids, tiles = reference.inputs(QUESTION, [picture])
    assert tiles is not None
    expected = reference.logits(ids, tiles)

    arguments = ModelArgs.model_validate_json((folder / "params.json").read_text())
    arguments.max_batch_size, arguments.max_seq_len = 1, 128
    model = Transformer(arguments).float()
    result = model.load_state_dict(_whole(folder, arguments), strict=False)
    assert not result.missing_keys
    assert {name.rsplit(".", 1)[1].split("_")[0] for name in result.unexpected_keys} <= {"global", "running", "expert"}
    assert np.abs(_metas_logits(model, ids, tiles) - expected).max() < 1e-3


def _whole(folder: Path, arguments: ModelArgs) -> dict[str, Any]:
    """The shards joined, without the byte streams that Transformer Engine left."""
    with torch.serialization.safe_globals([io.BytesIO]):
        parts = [torch.load(path) for path in sorted(folder.glob("*.pth"))]
    assert arguments.moe_args
    parts = [{name: part[name] for name in part if not isinstance(part[name], io.BytesIO)} for part in parts]
    if len(parts) == 1:
        return parts[0]
    return reshard_mp([convert_moe_weights(part, arguments.moe_args.num_experts) for part in parts], size=1, rank=0)


def _metas_logits(model: Transformer, ids: list[int], tiles: np.ndarray) -> np.ndarray:
    tokens = torch.tensor([ids])
    patch = llama4.llama4_tokenizer().token_to_id("<|patch|>")
    mask = (tokens == patch).unsqueeze(-1)
    with torch.inference_mode():
        features = model.vision_embeddings([[torch.from_numpy(tiles)]], mask, model.tok_embeddings(tokens))
        return model(TransformerInput(tokens, 0, MaskedEmbedding(features, mask))).logits[0].numpy()


def test_metas_tokenizer_agrees(tmp_path: Path) -> None:
    """On text and on every special token's id."""
    folder = llama4.meta(tmp_path / "meta", llama4.text_only(tmp_path / "hf"), fused=True)
    meta = Tokenizer(folder / "tokenizer.model")
    ours = FastTokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    assert meta.n_words == ours.get_vocab_size()
    assert meta.special_tokens == {text: ours.token_to_id(text) for text in meta.special_tokens}
    for text in TORTURE:
        assert ours.encode(text).ids == meta.encode(text, bos=True, eos=False, allowed_special="all"), text
