"""Levels, a byte each, into the bits of a block: eight at a time, as 64-bit words. For little-endian machines."""

import numpy as np

from quant.compiled.jit import jit

u8 = np.uint64
_NIBBLES, _PAIRS, _BITS = u8(0x0F0F0F0F0F0F0F0F), u8(0x0303030303030303), u8(0x0101010101010101)


@jit
def pack_nibbles(words, packed):
    """Four low bits each of 256 levels: byte ``i`` of each 32 holds levels ``i`` and ``32 + i`` of each 64."""
    for pair in range(4):
        for i in range(4):
            lower, upper = words[8 * pair + i], words[8 * pair + 4 + i]
            packed[4 * pair + i] = (lower & _NIBBLES) | ((upper & _NIBBLES) << u8(4))


@jit
def pack_nibbles_across(words, packed):
    """The same as q6_k has them: of each 128 levels, ``i`` and ``64 + i``."""
    for half in range(2):
        for i in range(8):
            lower, upper = words[16 * half + i], words[16 * half + 8 + i]
            packed[8 * half + i] = (lower & _NIBBLES) | ((upper & _NIBBLES) << u8(4))


@jit
def pack_high_bits(words, bit, packed):
    """Bit ``bit`` of 256 levels: byte ``i`` of 32 holds those of levels ``i``, ``32 + i``, ..."""
    for i in range(4):
        bits = u8(0)
        for j in range(8):
            bits |= ((words[4 * j + i] >> u8(bit)) & _BITS) << u8(j)
        packed[i] = bits


@jit
def _four(a, b, c, d):
    return (a & _PAIRS) | ((b & _PAIRS) << u8(2)) | ((c & _PAIRS) << u8(4)) | ((d & _PAIRS) << u8(6))


@jit
def pack_pairs(words, packed):
    """Two low bits each: byte ``i`` of each 32 holds levels ``i``, ``32 + i``, ``64 + i``, ``96 + i`` of each 128."""
    for half in range(2):
        for i in range(4):
            at = 16 * half + i
            packed[4 * half + i] = _four(words[at], words[at + 4], words[at + 8], words[at + 12])


@jit
def pack_upper_pairs(words, packed):
    """The same of the two bits above the nibble."""
    four = u8(4)
    for half in range(2):
        for i in range(4):
            at = 16 * half + i
            packed[4 * half + i] = _four(
                words[at] >> four, words[at + 4] >> four, words[at + 8] >> four, words[at + 12] >> four
            )


@jit
def copy(packed, out, at):
    """The words' bytes into ``out``."""
    octets = packed.view(np.uint8)
    for i in range(octets.size):
        out[at + i] = octets[i]


@jit
def pack_block(words, packed):
    """Four low bits each of 32 levels: byte ``i`` holds levels ``i`` and ``16 + i``."""
    for i in range(2):
        packed[i] = (words[i] & _NIBBLES) | ((words[2 + i] & _NIBBLES) << u8(4))


@jit
def pack_fifth_bits(words):
    """Bit 4 of 32 levels, as a 32-bit number. The product moves the lowest bits of eight bytes into the highest one."""
    bits = u8(0)
    for i in range(4):
        bits |= ((((words[i] >> u8(4)) & _BITS) * u8(0x0102040810204080)) >> u8(56)) << u8(8 * i)
    return bits
