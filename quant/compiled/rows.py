"""What is done with rows before they are quantized."""

import numpy as np

from quant.compiled.arithmetic import half_to_float, larger, magnitude_bits
from quant.compiled.jit import kernel


@kernel
def widen(bits, out):
    """bfloat16, as ``uint16``, to float32, as ``uint32``: its high half."""
    for i in range(bits.size):
        out[i] = np.uint32(bits[i]) << np.uint32(16)


@kernel
def widen_half(bits, out):
    """float16, as ``uint16``, to float32."""
    for i in range(bits.size):
        out[i] = half_to_float(bits[i])


@kernel
def largest_bits(x):
    """The bits of the largest magnitude among float32 numbers; NaN's are above infinity's."""
    most = np.int32(0)
    for i in range(x.size):
        most = larger(most, magnitude_bits(x[i]))
    return most
