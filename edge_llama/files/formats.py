"""How one tensor's numbers are stored: name, ggml id, block size, bytes per block. No kernels here.

Ids and sizes are those of ``ggml.h`` and ``ggml-common.h`` (ggml 0.25). A row is stored as whole blocks.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """A number format: ``block_size`` values take ``block_bytes`` bytes."""

    name: str
    ggml_id: int
    block_size: int
    block_bytes: int

    @property
    def is_quantized(self) -> bool:
        """Whether values are stored in blocks that share scales."""
        return self.block_size > 1

    @property
    def bits_per_weight(self) -> float:
        """Storage per value, scales included."""
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of ``columns`` values; ValueError unless it is whole blocks."""
        if columns % self.block_size:
            raise ValueError(f"{columns} values are no multiple of the {self.block_size} in a {self.name} block")
        return columns // self.block_size * self.block_bytes

    def __str__(self) -> str:
        return self.name


FORMATS: dict[str, Format] = {
    name: Format(name, ggml_id, block_size, block_bytes)
    for name, ggml_id, block_size, block_bytes in [
        ("f32", 0, 1, 4),
        ("f16", 1, 1, 2),
        ("q4_0", 2, 32, 18),
        ("q4_1", 3, 32, 20),
        ("q5_0", 6, 32, 22),
        ("q5_1", 7, 32, 24),
        ("q8_0", 8, 32, 34),
        ("q8_1", 9, 32, 36),
        ("q2_k", 10, 256, 84),
        ("q3_k", 11, 256, 110),
        ("q4_k", 12, 256, 144),
        ("q5_k", 13, 256, 176),
        ("q6_k", 14, 256, 210),
        ("q8_k", 15, 256, 292),
        ("iq2_xxs", 16, 256, 66),
        ("iq2_xs", 17, 256, 74),
        ("iq3_xxs", 18, 256, 98),
        ("iq1_s", 19, 256, 50),
        ("iq4_nl", 20, 32, 18),
        ("iq3_s", 21, 256, 110),
        ("iq2_s", 22, 256, 82),
        ("iq4_xs", 23, 256, 136),
        ("i8", 24, 1, 1),
        ("i16", 25, 1, 2),
        ("i32", 26, 1, 4),
        ("i64", 27, 1, 8),
        ("f64", 28, 1, 8),
        ("iq1_m", 29, 256, 56),
        ("bf16", 30, 1, 2),
        ("tq1_0", 34, 256, 54),
        ("tq2_0", 35, 256, 66),
        ("mxfp4", 39, 32, 17),
        ("nvfp4", 40, 64, 36),
        ("q1_0", 41, 128, 18),
        ("q2_0", 42, 64, 18),
    ]
}
BY_GGML_ID: dict[int, Format] = {entry.ggml_id: entry for entry in FORMATS.values()}

F32 = FORMATS["f32"]
F16 = FORMATS["f16"]
BF16 = FORMATS["bf16"]
