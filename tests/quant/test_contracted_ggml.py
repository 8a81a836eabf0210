"""A ggml whose build fuses products and sums, as compilers for aarch64 do unasked: it is found out, and not used.

It is llama.cpp's own sources, compiled here with contraction allowed.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from platform import machine

import checkpoints
import numpy as np
import pytest
from engine_source import ENGINE, unpacked
from llvmlite.binding import get_host_cpu_features
from suite import shared

import converters
from edge_llama.files.formats import FORMATS
from quant.compiled import NAMES
from quant.reference import ggml

ROOT = Path(__file__).resolve().parent.parent.parent
COMPILER = shutil.which("cc")
IS_ARM = machine() in ("aarch64", "arm64")
FUSING = ["-O2", "-ffp-contract=fast", *([] if IS_ARM else ["-mfma"])]
BACKENDS = ("ggml_backend_tensor_set", "ggml_backend_tensor_memset", "ggml_backend_buffer_get_usage")
"""What ggml.c calls besides, in training alone: here it ends the process."""
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or not COMPILER, reason="no C compiler here, or no linker of GNU's"),
    pytest.mark.skipif(
        not IS_ARM and not get_host_cpu_features().get("fma"), reason="this processor can't fuse products and sums"
    ),
]
Child = Callable[..., subprocess.CompletedProcess[str]]
KINDS = {"q4_0": "q4_0.gguf", "q4_k_m": "q4_k_m.gguf", "int4": "int4"}


def build(folder: Path) -> None:
    """A package ``llama_cpp`` of which only ggml's base library is there."""
    source, library = unpacked(version(ENGINE)) / "ggml", folder / "llama_cpp" / "lib" / "libggml-base.so"
    library.parent.mkdir(parents=True)
    (folder / "llama_cpp" / "__init__.py").touch()
    (folder / "ggml-version.h").write_text('#define GGML_VERSION "0"\n#define GGML_COMMIT ""\n')
    places = [f"-I{place}" for place in (folder, source / "include", source / "src")]
    common = [COMPILER, "-w", "-fPIC", "-D_GNU_SOURCE", *places]
    objects = []
    for name, flags in (("ggml-quants.c", FUSING), ("ggml.c", ["-O0"]), ("ggml-threading.cpp", ["-O0"])):
        objects.append(folder / f"{name}.o")
        subprocess.run([*common, *flags, "-c", source / "src" / name, "-o", objects[-1]], check=True)
    unused = [f"-Wl,--defsym={name}=ggml_abort" for name in BACKENDS]
    subprocess.run([COMPILER, "-shared", *objects, *unused, "-o", library, "-lm", "-lstdc++"], check=True)


@pytest.fixture(scope="module")
def beside_it(tmp_path_factory: pytest.TempPathFactory) -> Child:
    """Runs code in a process that finds this ggml in place of the installed one."""
    folder = shared(tmp_path_factory, "contracted-ggml", build)

    def run(code: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "EDGE_LLAMA_KERNELS": "auto"}
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=variables | environment, check=False)

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = checkpoints.Shape(hidden=256, ffn=512, layers=2)
    return checkpoints.llama3(tmp_path_factory.mktemp("checkpoint") / "Llama-tiny", shape=shape, dtype="BF16")


FOUND_OUT = """
import hashlib, sys
import numpy as np
from edge_llama.files.formats import FORMATS
from quant.reference import ggml, vectors
rows = np.load(sys.argv[1])
for name, has_importance in eval(sys.argv[2]):
    accepted = vectors.ggml_is_canonical(FORMATS[name], has_importance=has_importance)
    raw = ggml.quantize(rows, FORMATS[name], abs(rows[0]) if has_importance else None)
    print(accepted, hashlib.sha256(raw.tobytes()).hexdigest())
"""
CODEBOOKS = [("iq2_xxs", True), ("iq3_xxs", True), ("iq3_s", True), ("iq3_s", False)]
"""Those whose tables are set up within a second; of the others the same was seen."""
ASKED = [
    *((name, False) for name in NAMES),
    *((name, True) for name in ("q2_k", "q3_k", "q4_1", "q5_1", "q8_0")),
    *CODEBOOKS,
]
UNCHANGED = {("q3_k", False), ("q4_1", False), ("q5_1", False), ("q8_0", False), ("q8_0", True)}
"""Of those what fused sums leave alone here; another compiler may change more, and be refused in more."""


def test_it_is_refused_in_every_format_whose_bytes_it_changes(
    beside_it: Child, rng: np.random.Generator, tmp_path: Path
) -> None:
    """And where it is not, it makes of other weights too what the installed one makes."""
    rows = (rng.standard_normal((64, 1024)) * 0.02).astype(np.float32)
    rows[::2].view(np.uint32)[:] &= 0xFFFF0000  # bfloat16's
    np.save(tmp_path / "rows.npy", rows)
    done = beside_it(FOUND_OUT, tmp_path / "rows.npy", repr(ASKED))
    assert done.returncode == 0, done.stderr
    told = dict(zip(ASKED, (line.split() for line in done.stdout.splitlines()), strict=True))
    accepted = {each for each, (is_accepted, _) in told.items() if is_accepted == "True"}
    assert {("q8_0", False), ("q8_0", True)} <= accepted <= UNCHANGED
    for name, has_importance in accepted:
        ours = ggml.quantize(rows, FORMATS[name], abs(rows[0]) if has_importance else None)
        assert told[name, has_importance][1] == sha256(ours.tobytes()).hexdigest(), name


CONVERTED = """
import sys
import converters
from pathlib import Path
from quant.loading import in_use
for kind, name in eval(sys.argv[3]).items():
    to = {} if name.endswith("gguf") else {"to": "onnx"}
    converters.convert(sys.argv[1], Path(sys.argv[2]) / name, quant=kind, **to)
print(in_use())
"""


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


def test_compiled_kernels_make_everything_then_and_the_bytes_are_those_of_every_machine(
    beside_it: Child, checkpoint: Path, tmp_path: Path
) -> None:
    done = beside_it(CONVERTED, checkpoint, tmp_path, repr(KINDS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("compiled for this machine (accepted: ")
    assert "ggml's are refused: they give other bytes here than elsewhere" in done.stdout
    for kind, name in KINDS.items():
        here = tmp_path / "here" / name
        converters.convert(checkpoint, here, quant=kind, **({} if here.suffix else {"to": "onnx"}))
        assert contents(tmp_path / name) == contents(here), kind


REFUSED = """
import sys
{first}
import converters
from edge_llama.errors import EngineError
from quant.loading import in_use
try:
    converters.convert(sys.argv[1], sys.argv[2], quant="q4_0", tensor_types={{"token_embd": "q4_0"}})
except EngineError as error:
    print(error)
print(in_use())
"""
REMEDY = "build llama-cpp-python again with CFLAGS and CXXFLAGS set to '-ffp-contract=off'"
NO_NUMBA = "sys.modules['numba'] = None"
FUSED_KERNELS = "from quant.compiled.cache import FLAGS; FLAGS['fastmath'] = {'contract'}"


def refused(beside_it: Child, checkpoint: Path, output: Path, first: str, **environment: str) -> list[str]:
    """What a conversion to q4_0 alone says, and what is in use."""
    done = beside_it(REFUSED.format(first=first), checkpoint, output / "out.gguf", **environment)
    assert done.returncode == 0, done.stderr
    assert not list(output.iterdir())
    error, kernels = done.stdout.strip().rsplit("\n", 1)
    assert "the installed llama.cpp gives other bytes of q4_0 than it should on every machine" in error
    assert REMEDY in error
    return [error, kernels]


def test_it_can_t_be_demanded(beside_it: Child, checkpoint: Path, tmp_path: Path) -> None:
    error, kernels = refused(beside_it, checkpoint, tmp_path, "", EDGE_LLAMA_KERNELS="ggml")
    assert "quantizing to q4_0 without compiled kernels takes ggml's own" in error
    assert kernels.startswith("none: ggml's (EDGE_LLAMA_KERNELS) are refused")


def test_without_numba_nothing_quantizes(beside_it: Child, checkpoint: Path, tmp_path: Path) -> None:
    _, kernels = refused(beside_it, checkpoint, tmp_path, NO_NUMBA)
    assert kernels.startswith("none: ggml's (numba is not installed: pip install 'edge-llama[convert]') are refused")


def test_where_compiled_kernels_miss_the_bytes_too_the_format_is_refused(
    beside_it: Child, checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With contraction allowed they do; the compiler takes seconds, so what it makes is kept with pytest's cache."""
    assert request.config.cache
    place = request.config.cache.mkdir("fused-kernels") / "beside-fused-ggml"
    error, kernels = refused(beside_it, checkpoint, tmp_path, FUSED_KERNELS, EDGE_LLAMA_CACHE=str(place))
    assert "the compiled kernel of q4_0 gives other bytes than it should here" in error
    assert "refused, for they give other bytes here: q4_0" in kernels
