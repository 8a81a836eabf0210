"""Which of a processor's instruction sets an installed llama.cpp was compiled for: what it says of its build, read."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

# ggml's names (llama_print_system_info) and the system's (/proc/cpuinfo), of those that its kernels have code for.
_SYSTEMS_NAMES: Mapping[str, str] = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "FP16_VA": "asimdhp",
    "SVE": "sve",
    "SME": "sme",
}
_FEATURE = re.compile(r"(\w+) = (\d+)")


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """ggml's names of instruction sets."""

    used: tuple[str, ...]
    """Compiled in, and the processor has them, as far as the system says which it has."""
    unused: tuple[str, ...]
    """The processor has them, and the build does not use them."""

    def __str__(self) -> str:
        besides = f"; the processor has {' '.join(self.unused)} too, the build leaves them" if self.unused else ""
        return f"{' '.join(self.used) or 'none'}{besides}"


def cpu_kernels(system_info: str, features: Collection[str]) -> CpuKernels:
    """What ``llama_print_system_info`` says, beside the processor's ``features``: empty where the system names none."""
    _, _, cpu = system_info.partition("CPU : ")
    compiled = {name for name, value in _FEATURE.findall(cpu) if value != "0"}
    has = {name for name, systems in _SYSTEMS_NAMES.items() if systems in features or not features}
    used = tuple(name for name in _SYSTEMS_NAMES if name in compiled and name in has)
    return CpuKernels(used, tuple(name for name in _SYSTEMS_NAMES if features and name in has and name not in compiled))
