"""Names, licences, base models and ends of turn go with what is made of a checkpoint."""

import json
from pathlib import Path

import checkpoints
import pytest

import converters
import edge_llama
from edge_llama import CheckpointError
from edge_llama.files.gguf import read_header
from edge_llama.files.gguf_text import END_TOKENS

CARD = """---
language:
- en
- de
license: llama3.2
license_link: https://example.org/licence
base_model: meta-llama/Llama-3.2-1B
tags: [facebook, meta]
---
# A model
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint = checkpoints.llama3(tmp_path / "Llama-3.2-tiny")
    (checkpoint / "README.md").write_text(CARD)
    (checkpoint / "LICENSE.txt").write_text("Be kind.")
    (checkpoint / "USE_POLICY.md").write_text("Do no harm.")
    return checkpoint


def test_the_card_becomes_metadata(folder: Path, tmp_path: Path) -> None:
    header = read_header(converters.convert(folder, tmp_path / "a.gguf").output)
    assert header.get("general.name", str, "") == "Llama-3.2-tiny"
    assert header.get("general.license", str, "") == "llama3.2"
    assert header.get("general.license.link", str, "") == "https://example.org/licence"
    assert header.get("general.base_model.count", int, 0) == 1
    assert header.get("general.base_model.0.name", str, "") == "Llama-3.2-1B"
    assert header.get("general.base_model.0.organization", str, "") == "meta-llama"
    assert header.fields["general.languages"].data == ["en", "de"]
    again = read_header(converters.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", quant="q8_0").output)
    assert again.get("general.license", str, "") == "llama3.2"


def test_licences_go_into_a_folder(folder: Path, tmp_path: Path) -> None:
    out = converters.convert(folder, tmp_path / "out", to="safetensors").output
    assert (out / "LICENSE.txt").read_text() == "Be kind."
    assert (out / "USE_POLICY.md").read_text() == "Do no harm."


@pytest.mark.parametrize("card", ["---\nlicense: [\n---\n", "---\n- a\n---\n", "# no metadata", "", "\xff\xfe---"])
def test_a_card_that_says_nothing_is_no_obstacle(folder: Path, tmp_path: Path, card: str) -> None:
    (folder / "README.md").write_bytes(card.encode("latin-1"))
    done = converters.convert(folder, tmp_path / "a.gguf")
    assert "general.license" not in read_header(done.output).fields
    assert ("model card" in done.plan.checkpoint.notes) == ("[" in card)


def test_every_end_token_ends_an_answer(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [*settings["eos_token_id"], 65]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    path = converters.convert(folder, tmp_path / "a.gguf").output
    assert list(read_header(path).fields[END_TOKENS].data) == settings["eos_token_id"]
    with edge_llama.open(path, n_ctx=64) as model:
        assert model.tokenizer.is_end(65)
        assert not model.tokenizer.is_end(66)
    out = converters.convert(path, tmp_path / "out", to="safetensors").output
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == settings["eos_token_id"]


@pytest.mark.parametrize("bad", ["x", 10**6, [1, None], True, 1.5, [[1]]])
def test_an_end_token_that_is_none_is_an_error(folder: Path, tmp_path: Path, bad: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": bad}))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        converters.convert(folder, tmp_path / "a.gguf")
