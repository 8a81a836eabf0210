"""Which kernels a build has, by what llama.cpp and /proc/cpuinfo say: texts of real machines."""

import pytest

from edge_llama.backends.llama_cpp.cpu_kernels import cpu_kernels

XEON = (
    "CUDA : ARCHS = 900 | USE_GRAPHS = 1 | CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | "
    "BMI2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1"
)
ARM = "CPU : NEON = 1 | ARM_FMA = 1 | FP16_VA = 1 | MATMUL_INT8 = 1 | DOTPROD = 1 | SVE = 0 | OPENMP = 1 | REPACK = 1"


@pytest.mark.parametrize(
    ("info", "features", "told"),
    [
        (
            XEON,
            "pni ssse3 avx avx2 f16c fma bmi2 avx512f avx512_vnni avx512_bf16 amx_int8",
            "SSE3 SSSE3 AVX AVX2 F16C FMA BMI2 AVX512 AVX512_VNNI; the processor has AVX512_BF16 AMX_INT8 too, "
            "the build leaves them",
        ),
        (ARM, "fp asimd asimdhp asimddp i8mm", "NEON DOTPROD MATMUL_INT8 FP16_VA"),
        (ARM, "fp asimd asimdhp asimddp sve", "NEON DOTPROD FP16_VA; the processor has SVE too, the build leaves them"),
        (ARM, "", "NEON DOTPROD MATMUL_INT8 FP16_VA"),  # macOS names none
        ("CPU : ", "avx2", "none; the processor has AVX2 too, the build leaves them"),
    ],
)
def test_what_is_compiled_in_and_what_the_processor_has_is_told(info: str, features: str, told: str) -> None:
    assert str(cpu_kernels(info, features.split())) == told
