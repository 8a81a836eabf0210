"""A wrong conversion is caught and what is wrong is named; a right one is not, by whatever recipe.

One draw of each fault; ``benchmarks/sabotage.py`` draws each twenty times.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import checkpoints
import families
import llama4
import meta_folders
import numpy as np
import pytest
import sabotages
import variants
from checkpoints import Shape
from ggufs import read_tensor
from quantizer import WITHOUT_IMPORTANCE, quantized_by_llama_cpp
from suite import shared

import converters
from converters import certifying
from converters.certifying import Examined
from converters.checkpoint import Checkpoint
from converters.evidence import locating
from converters.evidence.locating import LayerError, Recorder
from converters.evidence.streamed import StreamedTower
from converters.sources import open_checkpoint
from converters.sources.gguf import stored_tensors
from edge_llama.backends.llama_cpp.vocabulary_probe import encode
from edge_llama.errors import DocumentError
from edge_llama.fidelity.source import Chunk
from edge_llama.fidelity.text import Text
from edge_llama.files.gguf import encode_header, read_header
from edge_llama.files.gguf_text import read_gguf_text
from quant.recipe import RECIPES

WIDE = Shape(hidden=256, ffn=256, layers=2, heads=4, kv_heads=4)
SMALL_LLAMA4 = llama4.K_QUANTS | {"num_local_experts": 3}
TOKENS = 32
SOME = ("f16", "q4_k_m")
"""Recipes that mixtures are tried by: experts take their time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3 with a head of its own and a Llama 4, and files of both in F16 and Q4_K_M."""

    def make(at: Path) -> None:
        at.mkdir()
        checkpoints.llama3(at / "llama3", shape=WIDE, tied=False)
        llama4.text_only(at / "llama4", **SMALL_LLAMA4)
        for name in ("llama3", "llama4"):
            for quant in ("f16", "q4_k_m"):
                converters.convert(at / name, at / f"{name}-{quant}.gguf", quant=quant)

    return shared(tmp_path_factory, "certifying", make)


def examined(source: Path, path: Path, **options: object) -> Examined:
    return certifying.examine(open_checkpoint(source), path, threads=2, **options)  # type: ignore[arg-type]


@contextmanager
def recorded(reference: Checkpoint, at: Path) -> Iterator[Recorder]:
    """What the checkpoint's layers are given and give."""
    rng = np.random.default_rng(3)
    at.mkdir()
    recorder = Recorder(at, [TOKENS, TOKENS], 256, 4)
    with closing(recorder), StreamedTower(reference, threads=2, folder=at, on_layer=recorder) as tower:
        tower.prepare([rng.integers(0, 200, TOKENS) for _ in range(2)])
        yield recorder


def layer_errors(reference: Checkpoint, found: Examined, recorder: Recorder) -> list[LayerError]:
    assert found.own is not None
    formats = {name: tensor.format for name, tensor in stored_tensors(read_gguf_text(found.own.path)).items()}
    return locating.measure(reference, found.own, formats, recorder, threads=2)


@pytest.mark.parametrize("quant", ["f16", "q4_k_m"])
@pytest.mark.parametrize("name", ["llama3", "llama4"])
def test_each_fault_is_caught_and_named(name: str, quant: str, folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(24)
    clean, reference = folder / f"{name}-{quant}.gguf", open_checkpoint(folder / name)
    with recorded(reference, tmp_path / "states") as recorder:
        for sabotage in dict(sabotages.of_file(clean)).values():
            wrong = sabotage(rng, clean, tmp_path / "wrong.gguf")
            found = examined(folder / name, tmp_path / "wrong.gguf")
            assert {fault.part for fault in found.faults} == {wrong.part}, wrong
            if wrong.part.startswith("layer"):  # by what the layer gives alone, too, whatever its matrices are
                errors = layer_errors(reference, found, recorder)
                assert {fault.part for fault in locating.of_layers(errors)} == {wrong.part}, wrong


@pytest.mark.parametrize("name", ["llama3", "llama4"])
def test_no_recipe_is_taken_for_a_fault(name: str, folder: Path, tmp_path: Path) -> None:
    reference = open_checkpoint(folder / name)
    with recorded(reference, tmp_path / "states") as recorder:
        for quant in WITHOUT_IMPORTANCE if name == "llama3" else SOME:
            path = tmp_path / f"{quant}.gguf"
            converters.convert(folder / name, path, quant=quant)
            found = examined(folder / name, path)
            assert not found.faults, (quant, str(found.faults[0]))
            for matrix in found.matrices:
                assert matrix.error == pytest.approx(matrix.expected, rel=1e-6), (quant, matrix)
            if quant in ("f16", "q4_k_m", "q2_k"):
                for error in layer_errors(reference, found, recorder):
                    assert error.error == pytest.approx(error.expected, rel=1e-4, abs=1e-6), (quant, error)


def test_the_engine_tries_the_vocabulary(folder: Path) -> None:
    path = folder / "llama3-f16.gguf"
    assert not examined(folder / "llama3", path, encode_gguf=encode).faults
    said = examined(folder / "llama3", path, encode_gguf=lambda _gguf, texts, _turns: ([[0]] * len(texts), None))
    assert [fault.part for fault in said.faults] == ["tokenizer"]
    assert "would become other tokens" in str(said.faults[0])


def test_files_of_llama_cpps_quantizer_pass(folder: Path, tmp_path: Path) -> None:
    converters.convert(folder / "llama3", tmp_path / "floats.gguf", quant="bf16")
    theirs = quantized_by_llama_cpp(tmp_path / "floats.gguf", tmp_path / "theirs.gguf", RECIPES["q5_k_m"].ftype)
    assert not examined(folder / "llama3", theirs).faults


def test_the_source_is_known_by_its_weights(folder: Path, tmp_path: Path) -> None:
    path = folder / "llama3-f16.gguf"
    checkpoints.llama3(tmp_path / "sharded", shape=WIDE, tied=False, shards=3)
    checkpoints.llama3(tmp_path / "other", shape=WIDE, tied=False, seed=1)
    same, sharded = (examined(source, path).source_sha256 for source in (folder / "llama3", tmp_path / "sharded"))
    other = examined(tmp_path / "other", path)
    assert same == sharded != other.source_sha256
    assert len({fault.part for fault in other.faults}) >= WIDE.layers + 2  # every layer, both ends


def test_another_shape_is_a_fault_of_its_parts(folder: Path, tmp_path: Path) -> None:
    checkpoints.llama3(tmp_path / "wide", shape=Shape(hidden=256, ffn=768, layers=3, heads=4, kv_heads=4), tied=False)
    told = list(map(str, examined(tmp_path / "wide", folder / "llama3-f16.gguf").faults))
    assert any("blk.1.ffn_up.weight has the shape [256, 256] instead of [768, 256]" in each for each in told)
    assert any("blk.2.attn_q.weight is missing" in each for each in told)
    assert any("n_layer is 2 instead of 3" in each for each in told)


def test_chunks_are_spread_over_domains() -> None:
    texts = [Text(name, domain, name * 40) for name, domain in (("a", "x"), ("b", "x"), ("c", "y"))]
    found = certifying.spread(texts, lambda text: list(map(ord, text)), n_ctx=10, n_tokens=50, bos=None)
    assert [chunk.text for chunk in found] == ["a", "c", "b", "c", "a"]
    with pytest.raises(DocumentError, match="too short"):
        certifying.spread(texts, lambda text: list(map(ord, text)), n_ctx=100, n_tokens=50, bos=None)


def test_an_engine_that_makes_another_model_of_the_weights_is_a_fault(folder: Path, tmp_path: Path) -> None:
    """As where a file is read back as wrongly as it was written: matrices and layers are right."""
    checkpoints.llama3(tmp_path / "other", shape=WIDE, tied=False, seed=1)
    reference, path = open_checkpoint(folder / "llama3"), folder / "llama3-q4_k_m.gguf"
    found = examined(folder / "llama3", path)
    rng = np.random.default_rng(0)
    chunks = [Chunk(rng.integers(0, 200, TOKENS), "a text") for _ in range(2)]
    for engine, faults in ((open_checkpoint(path), []), (open_checkpoint(tmp_path / "other"), ["engine"])):
        with StreamedTower(engine, threads=2, folder=tmp_path) as model:
            run = certifying.run(reference, found, model, chunks, threads=2, folder=tmp_path)
        assert [fault.part for fault in run.faults] == faults
        assert run.engine_kl is not None
        assert (run.engine_kl < 1e-6) is (not faults)
        assert len(run.layers) == WIDE.layers
    assert {each.name for each in tmp_path.iterdir()} == {"other"}


def test_an_embedding_that_is_written_twice_is_looked_at_twice(tmp_path: Path) -> None:
    checkpoints.llama3(tmp_path / "tied", shape=WIDE)
    converters.convert(tmp_path / "tied", tmp_path / "tied.gguf", quant="f16")
    header = read_header(tmp_path / "tied.gguf")
    (table,) = (info for info in header.tensors if info.name == "token_embd.weight")
    for order, parts in ((1, []), (-1, ["head"])):
        infos = [(info.name, info.shape, info.format) for info in header.tensors]
        raw = read_tensor(header.path, table)[::order]
        data = [*(read_tensor(header.path, info) for info in header.tensors), raw]
        head, _ = encode_header(dict(header.fields), [*infos, ("output.weight", table.shape, table.format)])
        twice = tmp_path / "twice.gguf"
        twice.write_bytes(head + b"".join(each.tobytes() + bytes(-each.nbytes % 32) for each in data))
        assert [fault.part for fault in examined(tmp_path / "tied", twice).faults] == parts


FORMS: dict[str, Callable[[Path], object]] = {
    **families.FAMILIES,
    "scout": llama4.scout,
    "maverick": lambda folder: llama4.maverick(folder, num_local_experts=8, use_qk_norm=True),
    **{
        make.__name__: make
        for make in (
            *(checkpoints.llama2, checkpoints.smollm, variants.linear, variants.yarn, variants.biased),
            *(variants.code_llama, variants.like_70b, variants.fine_tuned, variants.without_model_file),
        )
    },
    "meta llama2": meta_folders.llama2,
    "meta llama3": meta_folders.llama3,
    "padded": lambda folder: checkpoints.llama3(folder, padding=5),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_right_conversion_of_every_family_passes(form: str, tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "out.gguf"
    FORMS[form](source)
    converters.convert(source, path, quant="q8_0", tower="text" if form in ("scout", "maverick") else None)
    found = examined(source, path)
    assert [str(fault) for fault in found.faults] == []
    converters.convert(path, tmp_path / "again.gguf", quant="q4_0")
    assert [str(fault) for fault in examined(path, tmp_path / "again.gguf").faults] == []
