"""ONNX folders that give hidden states embed texts, and write as those that don't; others are refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_llama
import pytest
from embedding_models import cosines, reference
from refusals import refusal

import converters
import edge_llama
from edge_llama import ArtifactError, ContextFullError, InputError
from edge_llama.files.onnx_text import HIDDEN_STATES

TEXTS = ["The capital of Japan is Tokyo.", "a", "Llamas carry 25 kg. " * 90]  # more than a batch takes


@pytest.fixture(scope="module", params=[False, True], ids=["microsoft", "portable"])
def folder(request: pytest.FixtureRequest, llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("embeds") / "model"
    converters.convert(llama3, output, to="onnx", quant="f32", embeddings=True, portable=request.param)
    return output


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(folder, n_ctx=1024, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_equal_transformers(model: edge_llama.Model, llama3: Path, pooling: str) -> None:
    vectors = model.embed(TEXTS, pooling)
    assert cosines(vectors, reference(llama3, TEXTS, pooling)).min() >= 0.99999
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    alone = np.concatenate([model.embed([text], pooling) for text in TEXTS[::-1]])
    assert cosines(vectors[::-1], alone).min() >= 0.99999


def test_answers_are_those_of_a_folder_without(model: edge_llama.Model, llama3: Path, tmp_path: Path) -> None:
    converters.convert(llama3, tmp_path / "plain", to="onnx", quant="f32")
    running = model.generate("Once upon a time", temperature=0, max_tokens=12)
    assert model.embed(["a", "b"]).shape == (2, 128)
    with edge_llama.open(tmp_path / "plain", n_ctx=256, threads=1) as plain:
        answer = plain.generate("Once upon a time", temperature=0, max_tokens=12).result()
        assert running.result().tokens == answer.tokens
        with refusal(InputError, "the model gives no hidden states.*--embeddings", tmp_path / "plain"):
            plain.embed(["a"])


def test_a_folder_of_another_program_is_refused(onnx_folder: Path) -> None:
    with edge_llama.open(onnx_folder, n_ctx=64, threads=1) as model, refusal(InputError, "--embeddings", onnx_folder):
        model.embed(["a"])


def test_what_it_can_not_embed_is_refused(model: edge_llama.Model) -> None:
    with refusal(ContextFullError, r"texts\[1\] needs [\d,]+ tokens but the context holds 1,024;"):
        model.embed(["a", "llama " * 1100])
    with refusal(edge_llama.OptionError, "pooling cls"):
        model.embed(["a"], "cls")


def test_hidden_states_of_another_width_are_refused(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    (copied / "edge-llama.json").unlink()  # it has hashes
    onnx_llama.edited(copied / "genai_config.json", lambda c: c["model"]["decoder"].update(hidden_size=64))
    with refusal(ArtifactError, rf"has the output '{HIDDEN_STATES}' as .*, expected .*, 64\]", copied):
        edge_llama.open(copied, n_ctx=64, threads=1)


def test_gguf_needs_no_such_option(llama3: Path, tmp_path: Path) -> None:
    with refusal(edge_llama.OptionError, "--embeddings"):
        converters.convert(llama3, tmp_path / "model.gguf", embeddings=True)
