"""The tensors of Llama 4's vision tower and their shapes, under GGUF's names: to check one, and to write one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

ANY = -1
"""A size that is not known beforehand."""
_PARTS = ("ln1", "attn_q", "attn_k", "attn_v", "attn_out", "ln2", "ffn_up", "ffn_down")
_KINDS = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class VisionSizes:
    """What the shapes follow from. ``positions`` are the patches of a tile and the class token.

    ``patch`` is a patch's side in pixels, ``shuffled`` the width of the patches that pixel shuffle joins, ``n_adapter``
    that of the adapter after it, ``n_text`` the text tower's.
    """

    n_embd: int
    n_ff: int
    patch: int
    positions: int
    shuffled: int
    n_adapter: int
    n_text: int

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor ``name``, rows first; that of a vector of the tower's width for an unknown name."""
        width = self.n_embd
        part = re.sub(r"^v\.blk\.\d+\.", "", name)
        return {
            "v.position_embd.weight": (self.positions, width),
            "v.patch_embd.weight": (width, 3 * self.patch**2),
            **{f"attn_{part}.weight": (width, width) for part in ("q", "k", "v", "out")},
            "ffn_up.weight": (self.n_ff, width),
            "ffn_up.bias": (self.n_ff,),
            "ffn_down.weight": (width, self.n_ff),
            "mm.model.mlp.1.weight": (self.n_adapter, self.shuffled),
            "mm.model.mlp.2.weight": (self.n_adapter, self.n_adapter),
            "mm.model.fc.weight": (self.n_text, self.n_adapter),
        }.get(part, (width,))


def names(n_layer: int) -> Iterator[str]:
    """Every tensor of a tower of ``n_layer`` layers."""
    yield from ("v.class_embd", "v.position_embd.weight", "v.patch_embd.weight")
    yield from (f"v.{norm}.{kind}" for norm in ("pre_ln", "post_ln") for kind in _KINDS)
    for layer in range(n_layer):
        yield from (f"v.blk.{layer}.{part}.{kind}" for part in _PARTS for kind in _KINDS)
    yield from (f"mm.model.{part}.weight" for part in ("mlp.1", "mlp.2", "fc"))
