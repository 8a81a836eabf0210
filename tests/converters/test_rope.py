"""Rotary embedding: each spelling means what it means to transformers, in numbers; and in files of both kinds."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from engines import last_logits
from ggufs import rewritten
from onnx_graphs import TextGraph
from refusals import refusal
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from variants import edit_json

import converters
from converters.architectures import LLAMA
from converters.architectures.rope import attention_factor
from converters.architectures.rotary import frequencies
from edge_llama import CheckpointError
from edge_llama.files.gguf import f32, read_header, string, u32

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 4096,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
SPELLINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "base beside": {"rope_theta": 500000.0},
    "base within": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "base within beats base beside": {
        "rope_theta": 7.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 99.0},
    },
    "scaling of nothing": {"rope_scaling": None, "rope_theta": 300.0},
    "an empty scaling": {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    "linear, older name": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "both types": {"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 2.0}},
    "scaling takes the place of parameters": {
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 123456.0},
    },
    "parameters of no effect beside scaling": {
        "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 512},
        "rope_scaling": {"rope_type": "default", "rope_theta": 77.0},
    },
    "a default with a base in scaling": {
        "rope_scaling": {"rope_type": "default", "rope_theta": 77.0},
        "rope_theta": 5.0,
    },
    "llama3": {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 512, "rope_theta": 500000.0}},
    "llama3 by the context": {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "llama3, the context beside": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 256},
    "yarn": {"rope_scaling": YARN},
    "yarn, the context beside": {"rope_scaling": YARN, "original_max_position_embeddings": 512},
    "yarn by the context": {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1e6},
    "yarn, bounds": {"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2.0}},
    "yarn, not whole": {"rope_scaling": {**YARN, "truncate": False}},
    "yarn, attention": {"rope_scaling": {**YARN, "attention_factor": 1.5}},
    "yarn, mscale": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1}},
    "yarn, one mscale": {"rope_scaling": {**YARN, "mscale": 0.7, "finetuned": True}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_frequencies_and_strength_are_transformers(name: str) -> None:
    """To 1e-6 of each frequency; llama3's are computed as llama.cpp's converter does, in float32."""
    config = SIZES | SPELLINGS[name]
    theirs = LlamaRotaryEmbedding(LlamaConfig.from_dict(deepcopy(config)))  # which fills in what isn't said
    hp = LLAMA.read(config, Path("folder"), has_head=True)
    ours = frequencies(hp.head_dim, hp.rope.theta, hp.rope.scaling)
    np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=2e-6)
    assert attention_factor(hp.rope) == pytest.approx(theirs.attention_scaling, rel=1e-6)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "longrope": ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_scaling has type 'longrope'"),
    "an unknown type": ({"rope_parameters": {"rope_type": "spiral"}}, "rope_parameters has type 'spiral'"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor is missing"),
    "no bounds": ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, r"rope_scaling\.low_freq_factor is missing"),
    "a word": ({"rope_scaling": {"type": "linear", "factor": "2"}}, r"rope_scaling\.factor is '2'"),
    "a list": ({"rope_scaling": ["linear", 2]}, "rope_scaling is .*expected an object"),
    "part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1"),
    "part of a head, within": (
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        r"rope_parameters\.partial_rotary_f",
    ),
    "what nobody knows": ({"rope_scaling": {"type": "linear", "factor": 2.0, "sections": [1]}}, "sections is .*known"),
    "a base of nothing": ({"rope_theta": 0}, "rope_theta is 0"),
    "a context of no size": ({"rope_scaling": YARN, "original_max_position_embeddings": 1e20}, "is 1e\\+20, expected"),
    "a base without powers": ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta is 1, expected more than 1"),
    "truncate by a word": ({"rope_scaling": {**YARN, "truncate": "no"}}, "truncate is 'no'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_by_its_place(name: str) -> None:
    changes, expected = WRONG[name]
    with pytest.raises(CheckpointError, match=expected):
        LLAMA.read(SIZES | changes, Path("folder"), has_head=True)


IDS = np.random.default_rng(5).integers(3, 250, 60).tolist()


@pytest.fixture(scope="module")
def stretched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 2 with YaRN from 16 to 4,096 positions, said by rope_scaling over what rope_parameters has."""
    folder = checkpoints.llama2(tmp_path_factory.mktemp("yarn") / "checkpoint", old_spelling=False)
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    edit_json(folder / "config.json", rope_scaling=scaling)
    return folder


@pytest.fixture(scope="module")
def expected(stretched: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(stretched, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0, -1].numpy()


@pytest.mark.parametrize("portable", [False, True])
def test_yarn_in_onnx_is_transformers(stretched: Path, expected: Any, tmp_path: Path, *, portable: bool) -> None:
    plan = converters.convert(stretched, tmp_path / "onnx", to="onnx", quant="f32", portable=portable).plan
    assert np.abs(TextGraph(tmp_path / "onnx").feed(IDS) - expected).max() < 1e-3
    assert plan.checkpoint.notes["rope"].endswith("config.json: rope_parameters differs and is not used")


def test_yarn_in_gguf_is_transformers_and_stays_when_requantized(
    stretched: Path, expected: Any, tmp_path: Path
) -> None:
    converters.convert(stretched, tmp_path / "a.gguf", quant="f32")
    assert np.abs(last_logits(tmp_path / "a.gguf", IDS) - expected).max() < 1e-3
    converters.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", quant="q8_0")
    before, after = read_header(tmp_path / "a.gguf").fields, read_header(tmp_path / "b.gguf").fields
    rope = {key: value for key, value in before.items() if ".rope." in key}
    assert rope["llama.rope.scaling.type"] == string("yarn")
    assert rope == {key: value for key, value in after.items() if ".rope." in key}
    converters.convert(tmp_path / "a.gguf", tmp_path / "onnx", to="onnx", quant="f32")
    assert np.abs(TextGraph(tmp_path / "onnx").feed(IDS) - expected).max() < 1e-3


UNSAID = {
    "an extrapolation": {"llama.rope.scaling.yarn_ext_factor": f32(0.5)},
    "attention apart": {"llama.rope.scaling.attn_factor": f32(0.75)},
    "factors by length": {"llama.rope.scaling.type": string("longrope")},
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_config_json_cannot_say_stays_in_gguf_and_is_refused_elsewhere(
    name: str, stretched: Path, tmp_path: Path
) -> None:
    converters.convert(stretched, tmp_path / "a.gguf", quant="q8_0")
    source = rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", fields=UNSAID[name])
    converters.convert(source, tmp_path / "c.gguf", quant="q4_0")
    kept = read_header(tmp_path / "c.gguf").fields
    assert {key: kept[key] for key in UNSAID[name]} == UNSAID[name]
    for to in ("onnx", "safetensors"):
        with refusal(CheckpointError, "no rope scaling of a config.json reproduces", source):
            converters.plan(source, tmp_path / "out", to=to)


@pytest.mark.parametrize(
    "changes", [{"truncate": False}, {"attention_factor": 1.5}, {"mscale": 1.0, "mscale_all_dim": 2.0}]
)
def test_a_yarn_that_llama_cpp_computes_otherwise_is_refused_for_gguf(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = checkpoints.llama2(tmp_path / "checkpoint")
    edit_json(folder / "config.json", rope_scaling={**YARN, **changes})
    with refusal(CheckpointError, "rope_scaling is .*in GGUF it can only be: YaRN without", folder):
        converters.plan(folder, tmp_path / "x.gguf")
    converters.plan(folder, tmp_path / "onnx", to="onnx", quant="f32")


def test_scaling_within_the_context_alone_is_told(tmp_path: Path) -> None:
    folder = checkpoints.llama2(tmp_path / "checkpoint")
    edit_json(folder / "config.json", rope_scaling={"type": "dynamic", "factor": 4.0}, rope_theta=5.0)
    assert "dynamic scaling changes nothing" in converters.plan(folder, tmp_path / "x.gguf").checkpoint.notes["rope"]
    header = read_header(converters.convert(folder, tmp_path / "x.gguf").output)
    assert header.fields["llama.rope.freq_base"] == f32(5.0)
    assert header.fields["llama.context_length"] == u32(4096)
    assert "llama.rope.scaling.type" not in header.fields
