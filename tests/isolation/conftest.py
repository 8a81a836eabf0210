"""A small model in this process, and the same in one of its own."""

from collections.abc import Iterator
from pathlib import Path

import checkpoints
import pytest
from ggufs import rewritten
from isolated import OPTIONS
from suite import shared

import converters
import edge_llama
from edge_llama.files.gguf import Value, ValueType
from edge_llama.isolation.remote import IsolatedModel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3.2 with random weights in float32: greedy answers don't depend on how tokens are batched.

    Greedy is its default: a random model that draws ends some answers at once.
    """

    def write(path: Path) -> None:
        source = checkpoints.llama3(tmp_path_factory.mktemp("tiny") / "Llama-3.2-tiny-Instruct", dtype="F32")
        drawing = path.with_name("drawing.gguf")
        converters.convert(source, drawing, quant="f32")
        rewritten(drawing, path, fields={"general.sampling.temp": Value(ValueType.FLOAT32, 0.0)})

    return shared(tmp_path_factory, "tiny-isolated.gguf", write)


@pytest.fixture(scope="session")
def plain(tiny: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(tiny, **OPTIONS) as model:
        yield model


@pytest.fixture(scope="module")  # a file of tests leaves no process running
def isolated(tiny: Path) -> Iterator[IsolatedModel]:
    with edge_llama.open(tiny, isolate=True, **OPTIONS) as model:
        assert isinstance(model, IsolatedModel)
        yield model
