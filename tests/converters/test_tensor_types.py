"""Files of formats by tensor, as llama-quantize takes them by ``--tensor-type-file``: read, and written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints
import families
import numpy as np
import pytest
from quantizer import FORMATS_WITHOUT_IMPORTANCE, differences, quantized_by_llama_cpp
from refusals import refusal
from suite import shared

import converters
from converters.targets.gguf import tensor_type_lines
from edge_llama.errors import OptionError
from edge_llama.files.gguf import read_header
from quant.recipe import RECIPES, WRITTEN
from quant.tensor_types import asked_for, read_tensor_types

EDGE_LLAMA = Path(sys.executable).with_name("edge-llama")
SHAPE = checkpoints.Shape(hidden=256, ffn=288, layers=2, heads=4, kv_heads=2)
MODELS: dict[str, Callable[[Path], object]] = {
    "dense": lambda folder: checkpoints.llama2(folder, shape=SHAPE, dtype="BF16"),
    "experts": lambda folder: families.mixtral(folder, hidden_size=256, intermediate_size=256, num_hidden_layers=1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each model a checkpoint, and a file that loses nothing of it."""

    def make(at: Path) -> None:
        at.mkdir()
        for name, maker in MODELS.items():
            maker(at / name)
            converters.convert(at / name, at / f"{name}.gguf", quant="f32")

    return shared(tmp_path_factory, "tensor-types", make)


def patterns_of(path: Path) -> dict[str, str]:
    """As llama-quantize hands a file's lines over."""
    pairs = [line.partition("=") for line in path.read_text().split()]
    return {pattern.lower(): name.lower() for pattern, _, name in pairs}


def equal(ours: Path, theirs: Path) -> bool:
    return not list(differences(read_header(ours), read_header(theirs)))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "lines",
    [
        "attn_v=q8_0\nblk\\.[01]\\.ffn=Q5_1",
        "^blk\\.0\\.(attn_(q|k))\\.weight$=iq3_s attn_q=q4_1\t.*=q4_k",  # the first that is found; any white space
        "OUTPUT.weight=f16 no_such_tensor=q8_0",  # put in lower case; a pattern, which attn_output matches too
        "token_embd=q6_k\nnorm=q4_0\nffn_gate_inp=q4_0",  # what is never quantized stays
    ],
)
def test_a_file_means_what_it_means_to_llama_quantize(model: str, lines: str, folder: Path, tmp_path: Path) -> None:
    types, ours = tmp_path / "types.txt", tmp_path / "ours.gguf"
    types.write_text(lines)
    converters.convert(folder / model, ours, quant="q4_k_m", tensor_type_file=types)
    asked = patterns_of(types)
    theirs = quantized_by_llama_cpp(
        folder / f"{model}.gguf", tmp_path / "theirs.gguf", RECIPES["q4_k_m"].ftype, patterns=asked
    )
    assert equal(ours, theirs)


def test_a_pattern_of_no_tensor_is_told(folder: Path, tmp_path: Path) -> None:
    types = tmp_path / "types.txt"
    types.write_text("attn_v=q8_0 ssm_in=q8_0")
    work = converters.plan(folder / "dense", tmp_path / "a.gguf", tensor_type_file=types)
    assert work.checkpoint.notes["tensor types"] == "no tensor has ssm_in in its name"


def test_a_role_has_the_last_word(folder: Path, tmp_path: Path) -> None:
    types = tmp_path / "types.txt"
    types.write_text("attn_=q8_0")
    converters.convert(folder / "dense", tmp_path / "a.gguf", tensor_type_file=types, tensor_types={"attn_v": "f16"})
    found = {info.name: info.format.name for info in read_header(tmp_path / "a.gguf").tensors}
    assert found["blk.0.attn_v.weight"] == "f16"
    assert found["blk.0.attn_q.weight"] == "q8_0"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("quant", ["q4_k_m", "q3_k_l", "iq4_xs"])
def test_what_was_chosen_is_written_so_that_llama_quantize_chooses_the_same(
    model: str, quant: str, rng: np.random.Generator, folder: Path, tmp_path: Path
) -> None:
    """And read here again; by another recipe too, since every matrix is named."""
    types, ours, again = (tmp_path / name for name in ("types.txt", "ours.gguf", "again.gguf"))
    role, name = str(rng.choice(["attn_q", "ffn_up", "output"])), str(rng.choice(FORMATS_WITHOUT_IMPORTANCE))
    print(role, name)
    done = converters.convert(folder / model, ours, quant=quant, tensor_types={role: name})
    types.write_text(tensor_type_lines(done.plan.checkpoint, done.plan.options))
    theirs = quantized_by_llama_cpp(
        *(folder / f"{model}.gguf", tmp_path / "theirs.gguf", RECIPES[quant].ftype), patterns=patterns_of(types)
    )
    assert equal(ours, theirs)
    converters.convert(folder / model, again, quant="q6_k", tensor_type_file=types)
    tables = [[(info.name, info.format.name) for info in read_header(path).tensors] for path in (ours, again)]
    assert tables[0] == tables[1]


def test_the_file_names_each_matrix_as_a_whole(folder: Path, tmp_path: Path) -> None:
    types = tmp_path / "types.txt"
    command = [EDGE_LLAMA, "convert", folder / "dense", tmp_path / "a.gguf", "--dry-run", "--write-tensor-types", types]
    subprocess.run(command, check=True, capture_output=True)
    assert not (tmp_path / "a.gguf").exists()
    lines = types.read_text().splitlines()
    assert r"^blk\.0\.attn_q\.weight$=q4_k" in lines
    assert r"^output\.weight$=q6_k" in lines
    assert len(lines) == 2 + 2 * 7
    names = [info.name for info in read_header(folder / "dense.gguf").tensors]
    asked = read_tensor_types(types, WRITTEN)
    assert sum(asked_for(name, asked) is not None for name in names) == len(lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--write-tensor-types", "types.txt"], "--write-tensor-types: is for --dry-run alone"),
        (["--write-tensor-types", "types.txt", "--dry-run", "--to", "onnx"], "for a text tower in GGUF alone"),
        (["--write-tensor-types", "types.txt", "--dry-run", "--quant", "f16"], "not with --quant f16"),
        (["--write-tensor-types", "there.txt", "--dry-run"], "there.txt: already exists"),
        (["--write-tensor-types", "none/types.txt", "--dry-run"], "none/types.txt: cannot be written"),
    ],
)
def test_what_can_t_be_written_is_one_line(arguments: list[str], expected: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("mine")
    output = "out" if "onnx" in arguments else "a.gguf"
    command = [EDGE_LLAMA, "convert", folder / "dense", output, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert expected in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["there.txt"]
    assert (tmp_path / "there.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "names no tensor"),
        (b"attn_v", "'attn_v': expected PATTERN=FORMAT"),
        (b"=q8_0", "expected PATTERN=FORMAT"),
        (b"attn_v=", "expected PATTERN=FORMAT"),
        (b"attn_v = q8_0", "expected PATTERN=FORMAT"),
        (b"attn_v=q9", "no such format; known: "),
        (b"attn_v=tq1_0", "no such format"),
        (b"attn_(v=q8_0", "is no regular expression"),
        (b"(?i)attn=q8_0", r"begins with \(\?"),
        (b"[[:alpha:]]=q8_0", "a POSIX class"),
        (b"a{,3}=q8_0", "a brace that counts nothing"),
        (b"a++=q8_0", "a possessive quantifier"),
        (b"\\Zx=q8_0", "an escaped letter"),
        (b"\xff=q8_0", "is no text in UTF-8 at byte 0"),
        (b"a" * (1 << 23), "has more than 4,194,304 bytes"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    content: bytes, expected: str, folder: Path, tmp_path: Path
) -> None:
    types = tmp_path / "types.txt"
    types.write_bytes(content)
    with refusal(OptionError, expected, types):
        converters.plan(folder / "dense", tmp_path / "a.gguf", tensor_type_file=types)


def test_a_file_that_can_t_be_read_and_a_recipe_of_floats_are_refused(folder: Path, tmp_path: Path) -> None:
    with refusal(OptionError, "cannot be read: No such file", tmp_path / "none.txt"):
        converters.plan(folder / "dense", tmp_path / "a.gguf", tensor_type_file=tmp_path / "none.txt")
    (tmp_path / "types.txt").write_text("attn_v=q8_0")
    with refusal(OptionError, "not with --quant bf16, where llama-quantize ignores it"):
        converters.plan(folder / "dense", tmp_path / "a.gguf", quant="bf16", tensor_type_file=tmp_path / "types.txt")
