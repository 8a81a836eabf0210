"""Compiled kernels against ggml's: the same bytes, or they are not used."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from platform import machine

import numpy as np
import pytest
from llvmlite.binding import get_host_cpu_features
from numpy.typing import NDArray

from converters.sources import open_checkpoint
from edge_llama.errors import OptionError
from edge_llama.files.formats import BF16, F32, FORMATS
from quant import compiled, kernels
from quant.compiled import NAMES, Kernel
from quant.loading import choice, in_use
from quant.reference import ggml, vectors
from quant.reference.vectors import gives_expected_bytes, hashed

Rows = NDArray[np.float32]
ROWS, COLUMNS = 9, 1280  # the last tile of lanes is not full, in any format


def shaped(rng: np.random.Generator, family: str) -> Rows:
    """Rows of a family that has broken a quantizer somewhere."""
    normal = rng.standard_normal((ROWS, COLUMNS))
    shaped_rows = {
        "normal": lambda: normal * 0.02,
        "heavy-tailed": lambda: rng.standard_t(2, normal.shape),
        "zeros": lambda: normal * 0,
        "half zeros": lambda: np.where(rng.random(normal.shape) < 0.5, 0, normal),
        "constant": lambda: np.full(normal.shape, 0.37),
        "negative constant": lambda: np.full(normal.shape, -0.37),
        "denormals": lambda: normal * 1e-41,
        "tiny": lambda: normal * 1e-17,
        "huge": lambda: normal * 1e37,
        "large": lambda: normal * 1e18,
        "one outlier": lambda: np.where(np.arange(COLUMNS) == 77, 500, normal * 0.01),
        "negative": lambda: -abs(normal),
        "positive": lambda: abs(normal),
        "ties": lambda: rng.integers(-4, 5, normal.shape) * 0.5,
        "all sizes": lambda: normal * np.exp(rng.uniform(-40, 40, (ROWS, COLUMNS // 16))).repeat(16, axis=1),
        "bf16": lambda: normal.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000),
        "one row of zeros": lambda: normal * (np.arange(ROWS) != 3)[:, None],
    }[family]()
    return shaped_rows.view(np.float32) if shaped_rows.dtype == np.uint32 else shaped_rows.astype(np.float32)


pytestmark = pytest.mark.timeout(1800)  # the first of them compiles all kernels
SANE = ("normal", "heavy-tailed", "zeros", "half zeros", "negative", "positive", "ties", "bf16", "one outlier")
FAMILIES = (
    *SANE,
    *("constant", "negative constant", "denormals", "tiny", "huge", "large", "all sizes", "one row of zeros"),
)


@pytest.fixture(scope="module", autouse=True)
def compiled_before() -> None:
    """All kernels, compiled in processes side by side: what is measured here is bytes."""
    commands = [
        [sys.executable, "-m", "quant.compiled", *importance, *names]
        for names in (NAMES[::2], NAMES[1::2])
        for importance in ([], ["--importance"])
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))


def importance_of(rng: np.random.Generator, has_importance: bool) -> Rows | None:
    if not has_importance:
        return None
    weights = rng.random(COLUMNS).astype(np.float32) ** 4
    weights[::50] = 0  # a column that no activation ever reached
    return weights


def kernel(name: str, has_importance: bool) -> Kernel:
    found = compiled.load(name, has_importance=has_importance)
    assert found, f"{name} does not give ggml's bytes on this machine"
    return found


@pytest.mark.parametrize("has_importance", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_ggmls(name: str, has_importance: bool, rng: np.random.Generator) -> None:
    weights = importance_of(rng, has_importance)
    for family in FAMILIES:
        rows = shaped(rng, family)
        mine = kernel(name, has_importance).quantize(rows, weights)
        assert np.array_equal(mine, ggml.quantize(rows, FORMATS[name], weights)), family


@pytest.mark.parametrize("has_importance", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", NAMES)
def test_sane_rows_are_not_left_to_ggml(name: str, has_importance: bool, rng: np.random.Generator) -> None:
    format_, function = FORMATS[name], kernel(name, has_importance)._function
    for family in SANE:
        rows = shaped(rng, family)
        odd = np.ones(rows.size // format_.block_size, np.bool_)
        out = np.empty(ROWS * format_.row_bytes(COLUMNS), np.uint8)
        function(rows.reshape(-1), COLUMNS, importance_of(rng, has_importance), out, odd)
        assert not odd.any(), family


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_real_weights_are_ggmls(name: str, smollm2: Path) -> None:
    for tensor in ("model.embed_tokens", "model.layers.0.mlp.down_proj", "model.layers.9.self_attn.v_proj"):
        source = open_checkpoint(smollm2).tensors[f"{tensor}.weight"]
        rows = ggml.dequantize(source.read(0, min(source.rows, 2048)), source.format)
        columns = source.columns // FORMATS[name].block_size * FORMATS[name].block_size
        rows = np.ascontiguousarray(rows[:, :columns])
        assert np.array_equal(kernel(name, False).quantize(rows), ggml.quantize(rows, FORMATS[name])), tensor


@pytest.mark.parametrize("shape", [(1, 256), (1, 1024), (5, 256), (64, 256), (65, 2048), (3, 14336)])
@pytest.mark.parametrize("name", ["q4_k", "q6_k", "q8_0", "iq4_nl"])
def test_any_number_of_rows(name: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    rows = rng.standard_normal(shape).astype(np.float32)
    assert np.array_equal(kernel(name, False).quantize(rows), ggml.quantize(rows, FORMATS[name]))


def test_rows_of_no_weights() -> None:
    rows = np.empty((0, 256), np.float32)
    assert kernel("q4_k", False).quantize(rows).shape == (0, 144)


def test_expected_hashes_are_those_of_ggml_here() -> None:
    """They were carried from x86-64; a ggml that was built otherwise may differ, and is then not asked."""
    if machine() not in ("x86_64", "AMD64"):
        pytest.skip("aarch64's compilers fuse products and sums in ggml unasked: canonical are x86-64's bytes")
    for name in NAMES:
        for has_importance in (False, True):
            ours = partial(ggml_quantize, name)
            assert gives_expected_bytes(FORMATS[name], ours, has_importance=has_importance), (name, has_importance)


def ggml_quantize(name: str, rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
    return ggml.quantize(rows, FORMATS[name], importance)


def test_an_expected_hash_is_of_every_byte() -> None:
    def all_but_one(rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
        out = ggml_quantize("q8_0", rows, importance)
        out[-1, -1] ^= 1
        return out

    assert not gives_expected_bytes(FORMATS["q8_0"], all_but_one)
    assert hashed(all_but_one, False) != hashed(partial(ggml_quantize, "q8_0"), False)


FUSES = machine() in ("aarch64", "arm64") or get_host_cpu_features().get("fma")
"""Every aarch64 has the instruction, and names no feature for it."""
FUSIBLE = [
    *((name, False) for name in NAMES if name not in ("q4_1", "q5_1", "q8_0")),
    *((name, True) for name in ("q2_k", "q4_1", "q5_1", "iq4_xs")),
]
"""Where a product and a sum follow each other, and one rounding less can tell: not so in those three formats.

With importance those that can't be told without, and those that fewest blocks give away; compiling takes seconds each.
"""


FUSING = """
import sys
from quant.compiled.cache import FLAGS
FLAGS["fastmath"] = {"contract"}
from quant import compiled
from quant.loading import in_use
print([which for which in eval(sys.argv[1]) if compiled.load(which[0], has_importance=which[1])])
print(in_use())
"""


@pytest.mark.skipif(not FUSES, reason="this processor can't fuse products and sums")
def test_kernels_that_fuse_products_are_found_out(request: pytest.FixtureRequest) -> None:
    """The check at loading has teeth: with contraction allowed (FMA) the bytes differ, and the kernel is refused.

    Compiling them takes most of a minute: they are kept with pytest's cache, under a digest of all sources of kernels.
    """
    assert request.config.cache
    folder = request.config.cache.mkdir("fused-kernels")
    environment = os.environ | {"EDGE_LLAMA_KERNELS": "auto"}

    def accepted(half: int) -> list[str]:
        command = [sys.executable, "-c", FUSING, repr(FUSIBLE[half::2])]
        place = {"EDGE_LLAMA_CACHE": str(folder / str(half))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment | place, check=True)
        return done.stdout.splitlines()

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(accepted, (0, 1)))
    for half, (names, kernels_in_use) in enumerate(told):
        refused = ", ".join(name for name, has_importance in FUSIBLE[half::2] if not has_importance)
        assert names == "[]"
        assert kernels_in_use == (
            f"compiled for this machine (refused, for they give other bytes here: {refused}); "
            "ggml's for small models, while ours are compiled, and for what is refused"
        )


def test_threads_share_a_kernel(rng: np.random.Generator) -> None:
    rows, q4_k = rng.standard_normal((64, 1024)).astype(np.float32), kernel("q4_k", False)
    expected = q4_k.quantize(rows)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(out, expected) for out in pool.map(q4_k.quantize, [rows] * 16))


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADING = """
import sys, time
from edge_llama.files.formats import FORMATS
from quant import kernels
from quant.loading import Need, loading_kernels
q4_k = Need(FORMATS["q4_k"])
with loading_kernels({q4_k: int(sys.argv[1])}, 1):
    deadline = time.monotonic() + float(sys.argv[2])
    while not kernels._loaded and time.monotonic() < deadline:
        time.sleep(0.02)
print("numba" in sys.modules, sorted(kernels._loaded))
"""


def loading(weights: int, seconds: float, **environment: str) -> str:
    return run(LOADING.replace("sys.argv[1]", repr(weights)).replace("sys.argv[2]", repr(seconds)), **environment)


def test_a_small_model_waits_for_no_compiler() -> None:
    assert loading(10**6, 0.2, EDGE_LLAMA_KERNELS="auto") == "False []"


def test_a_large_model_gets_what_lies_compiled() -> None:
    assert loading(10**9, 60, EDGE_LLAMA_KERNELS="auto") == "True [('q4_k', False)]"


def test_a_large_model_gets_what_is_compiled_meanwhile(tmp_path: Path) -> None:
    environment = {"EDGE_LLAMA_KERNELS": "auto", "EDGE_LLAMA_CACHE": str(tmp_path)}
    assert loading(10**9, 300, **environment) == "True [('q4_k', False)]"
    assert loading(10**9, 60, **environment) == "True [('q4_k', False)]"


def test_the_compiler_is_left_when_the_work_is_done_before(tmp_path: Path) -> None:
    assert loading(10**9, 1.0, EDGE_LLAMA_KERNELS="auto", EDGE_LLAMA_CACHE=str(tmp_path)) == "True []"


def test_processes_that_compile_at_once_don_t_mix_up_their_code(tmp_path: Path) -> None:
    """numba numbers a function's variants without a lock: one process's code was found under another's number."""
    code = "import sys; from quant import compiled; assert compiled.load('q8_0', has_importance=len(sys.argv) > 1)"
    environment = os.environ | {"EDGE_LLAMA_CACHE": str(tmp_path)}
    for _ in range(2):  # compiled, then found
        variants = [[], ["importance"], [], ["importance"]]
        started = [subprocess.Popen([sys.executable, "-c", code, *variant], env=environment) for variant in variants]
        assert [process.wait() for process in started] == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_without_a_place_for_compiled_code_ggml_does_the_work(kind: str, tmp_path: Path) -> None:
    """A folder that can't be made: the conversion goes on, and the log says why."""
    place = tmp_path / "taken"
    place.write_text("") if kind == "file" else place.symlink_to("/proc/nowhere")
    code = (
        LOADING.replace("sys.argv[1]", "10**9").replace("sys.argv[2]", "60").replace("not kernels._loaded", "not told")
    )
    told = (
        "import logging\ntold = []\nlogging.getLogger('edge_llama').addFilter(lambda r: told.append(r.getMessage()))\n"
    )
    lines = run(told + code + "print(*told)", EDGE_LLAMA_CACHE=str(place)).splitlines()
    assert lines == ["True []", "the kernel of q4_k could not be compiled: python -m quant.compiled q4_k says why"]


def test_ggml_can_be_demanded() -> None:
    assert loading(10**12, 0.2, EDGE_LLAMA_KERNELS="ggml") == "False []"


def test_compiled_can_be_demanded() -> None:
    assert loading(1, 0, EDGE_LLAMA_KERNELS="compiled") == "True [('q4_k', False)]"


def test_an_unknown_demand_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_LLAMA_KERNELS", "cuda")
    with pytest.raises(OptionError, match=r"EDGE_LLAMA_KERNELS is 'cuda'.*\n?.*auto, ggml, compiled"):
        choice()


def test_kernels_that_give_the_expected_bytes_are_told_as_accepted() -> None:
    assert compiled.verdicts() == (NAMES, ())
    assert in_use() == (
        "compiled for this machine (accepted: all); "
        "ggml's for small models, while ours are compiled, and for what is refused"
    )


def test_kernels_that_were_never_compiled_are_not_told_as_accepted(tmp_path: Path) -> None:
    code = "from quant import compiled, kernels; from quant.loading import in_use; from quant.compiled import cache\n"
    code += "print(in_use()); cache.locked('q8_0'); cache.note('q8_0', True); cache.note('q4_0', False)\n"
    code += "cache.note('q4_0', True); cache.note('q6_k', False); print(*compiled.verdicts(), in_use())"
    first, second = run(code, EDGE_LLAMA_KERNELS="auto", EDGE_LLAMA_CACHE=str(tmp_path)).splitlines()
    assert first.startswith("compiled for this machine (none tried yet); ")
    assert second.startswith("('q4_0', 'q8_0') ('q6_k',) compiled for this machine (accepted: ")
    assert "(accepted: q4_0, q8_0; refused, for they give other bytes here: q6_k); ggml's" in second


@pytest.mark.parametrize("has_importance", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", NAMES)
def test_no_row_of_the_carried_vectors_is_left_to_ggml(name: str, has_importance: bool) -> None:
    """Else whether a compiled kernel is accepted would depend on which ggml is installed."""
    rows, weights = vectors.rows(), vectors.importance() if has_importance else None
    odd = np.ones(rows.size // FORMATS[name].block_size, np.bool_)
    out = np.empty(len(rows) * FORMATS[name].row_bytes(rows.shape[1]), np.uint8)
    kernel(name, has_importance)._function(rows.reshape(-1), rows.shape[1], weights, out, odd)
    assert not odd.any()


def test_carried_vectors_hold_what_breaks_quantizers() -> None:
    rows = vectors.rows()
    assert np.isfinite(rows).all()
    assert (rows.view(np.uint32) & 0xFFFF == 0).all(axis=1).sum() > 600  # bfloat16's
    largest = abs(rows).max(axis=1)
    assert largest.min() < 2e-6
    assert largest.max() > 2e4
    assert ((rows == rows[:, :1]).all(axis=1)).any()
    assert (largest / np.median(abs(rows) + np.float32(1e-30), axis=1) > 200).any()
    assert np.unique(abs(rows)[largest == 0.375]).size == 1


def test_recoding_by_compiled_kernels_is_recoding_by_ggmls(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((300, 512)).astype(np.float32)
    for source in (F32, BF16, FORMATS["f16"], FORMATS["q8_0"]):
        raw = ggml.quantize(rows, source)
        expected = ggml.quantize(ggml.dequantize(raw, source), FORMATS["q6_k"])
        assert kernels.load(FORMATS["q6_k"])
        assert np.array_equal(kernels.recode(raw, source, FORMATS["q6_k"]), expected)


def test_every_half_and_every_bfloat_becomes_the_float_that_it_is() -> None:
    tools, bits = compiled.load_rows(), np.arange(1 << 16, dtype=np.uint16)
    halves, bfloats = np.empty(bits.size, np.float32), np.empty(bits.size, np.uint32)
    tools.widen_half(bits, halves)
    tools.widen(bits, bfloats)
    np.testing.assert_array_equal(halves, bits.view(np.float16).astype(np.float32))
    assert np.array_equal(halves.view(np.uint32) >> 31, bits.astype(np.uint32) >> 15)
    assert np.array_equal(bfloats, bits.astype(np.uint32) << 16)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_with_compiled_kernels_too(bad: float, rng: np.random.Generator) -> None:
    assert kernels.load(FORMATS["q4_k"])
    rows = rng.standard_normal((700, 256)).astype(np.float32)
    rows[1, 7] = rows[699, 250] = bad
    for source in (F32, BF16, FORMATS["f16"]):
        raw = ggml.quantize(rows, source)
        with pytest.raises(kernels.NonFiniteError, match="2 weights"):
            kernels.recode(raw, source, FORMATS["q4_k"])
        unchecked = kernels.recode(raw, source, FORMATS["q4_k"], check=False)
        assert np.array_equal(unchecked, ggml.quantize(ggml.dequantize(raw, source), FORMATS["q4_k"]))
