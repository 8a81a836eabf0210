"""One field of a vision tower's GGUF header edited at a time, and the process that encodes a tile with each.

    PYTHONPATH=tests python tests/tower_sweep.py BUNDLE/mmproj.gguf

What ``field_sweep.py`` does for text models: it must run, or be refused by a typed error, and never end the process.
"""

import ctypes
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import field_sweep
import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp as mtmd

from edge_llama.backends.towers import read_vision
from edge_llama.errors import EdgeLlamaError
from edge_llama.files.gguf import ValueType, array, boolean, f32, read_header, string, u32

_V = "clip.vision."
_ABSENT = {  # what llama.cpp reads for a vision tower if it is there
    "clip.has_audio_encoder": boolean(False),
    "clip.has_gen_audio_encoder": boolean(False),
    "clip.use_silu": boolean(False),
    f"{_V}projector_type": string("llama4"),
    f"{_V}attention.head_count_kv": u32(3),
    f"{_V}attention.head_dim": u32(16),
    f"{_V}feature_layer": array(ValueType.INT32, [1]),
    f"{_V}image_grid_pinpoints": array(ValueType.INT32, [56, 56]),
    f"{_V}image_min_pixels": u32(1),
    f"{_V}image_max_pixels": u32(1 << 20),
    f"{_V}preproc_min_tiles": u32(1),
    f"{_V}preproc_max_tiles": u32(4),
    f"{_V}preproc_image_size": u32(56),
    f"{_V}spatial_merge_size": u32(2),
    f"{_V}mm_patch_merge_type": string("spatial_unpad"),
    f"{_V}n_wa_pattern": u32(2),
    f"{_V}window_size": u32(2),
    f"{_V}swiglu_clamp": f32(1),
    "clip.minicpmv_version": u32(3),
    "clip.minicpmv_query_num": u32(3),
    "general.description": string("a tower"),
    "edge_llama.max_tiles": u32(16),
    "general.alignment": u32(32),
}
_MORE_TENSORS = {
    "v.blk.0.attn_qkv.weight": (48, 144),
    "v.blk.0.attn_q_norm.weight": (48,),
    "v.blk.0.attn_post_norm.weight": (48,),
    "v.blk.0.ls1.weight": (48,),
    "v.blk.0.ffn_gate.weight": (48, 192),
    "v.blk.0.ffn_gate_exps.weight": (48, 192, 2),
    "v.patch_embd.bias": (48,),
    "v.patch_embd.weight.1": (588, 48),
    "v.image_newline": (48,),
}


def cases(source: Path) -> Sequence[field_sweep.Case]:
    """Every case for this tower."""
    return field_sweep.cases(read_header(source), _ABSENT, _MORE_TENSORS)


class Encoder:
    """llama.cpp's own encoder, for the text model whose tower it is."""

    def __init__(self, text: Path) -> None:
        llama_cpp.llama_backend_init()
        self._text = llama_cpp.llama_model_load_from_file(str(text).encode(), llama_cpp.llama_model_default_params())

    def verdict(self, path: Path) -> str:
        """``runs``, or the typed error; anything else is raised."""
        try:
            spec = read_vision(path).spec
        except EdgeLlamaError as error:
            return f"{type(error).__name__}: {error}".replace(str(path), "FILE")
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.warmup, params.n_threads = False, True, 1
        context = mtmd.mtmd_init_from_file(str(path).encode(), self._text, params)
        if not context:
            return "refused by llama.cpp"
        try:
            return f"runs {self._encoded(context, spec.tile)}"
        finally:
            mtmd.mtmd_free(context)

    def _encoded(self, context: Any, side: int) -> int:
        """How many embeddings a grey tile becomes."""
        grey = np.full((side, side, 3), 128, np.uint8)
        bitmap = mtmd.mtmd_bitmap_init(side, side, grey.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks = mtmd.mtmd_input_chunks_init()
        text = mtmd.mtmd_input_text(mtmd.mtmd_default_marker(), len(mtmd.mtmd_default_marker()), False, True)
        assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1) == 0
        all_chunks = [mtmd.mtmd_input_chunks_get(chunks, at) for at in range(mtmd.mtmd_input_chunks_size(chunks))]
        images = [
            chunk for chunk in all_chunks if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE
        ]
        assert mtmd.mtmd_encode_chunk(context, images[0]) == 0
        n_tokens = int(mtmd.mtmd_input_chunk_get_n_tokens(images[0]))
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return n_tokens


def main() -> None:
    """Serve the parent process, or sweep all cases and report."""
    source = Path(sys.argv[1])
    found = cases(source)
    if sys.argv[2:] == ["-"]:
        field_sweep.serve(source, found, Encoder(source.with_name("text.gguf")).verdict)
        return
    verdicts = field_sweep.sweep(source, range(len(found)), __file__)
    for number, text in sorted(verdicts.items()):
        print(found[number].label, text, sep=": ")
    counts = Counter(re.split(r"[: ]", text)[0] for text in verdicts.values())
    print(f"{len(verdicts):,} cases:", ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common()))


if __name__ == "__main__":
    main()
