"""An mmproj has its tensors and settings in the places where llama.cpp's converter puts them.

That whole files are equal needs that converter's source: benchmarks/converter_parity.py.
"""

from pathlib import Path

import llama4
import numpy as np
import pytest
from safetensors.numpy import load_file

import converters
from edge_llama.files.gguf import read_header


@pytest.mark.parametrize("layers", [3, 11])
def test_tensors_stand_in_the_order_of_a_safetensors_file(layers: int, tmp_path: Path) -> None:
    """By Hugging Face's names, so layer 10 before layer 2; float32, one after the other with padding to 32."""
    source = llama4.scout(tmp_path / "source", vision={"num_hidden_layers": layers}, num_hidden_layers=1)
    converters.convert(source, tmp_path / "mmproj.gguf", tower="vision", vision_quant="f32")
    header = read_header(tmp_path / "mmproj.gguf")
    stored = header.path.read_bytes()
    weights = load_file(source / "model.safetensors")
    theirs = sorted(name for name in weights if name.startswith(("vision_model.", "multi_modal_projector.")))
    assert len(theirs) == len(header.tensors)
    for name, tensor in zip(theirs, header.tensors, strict=True):
        expected = weights[name].astype(np.float32).tobytes()
        assert stored[tensor.offset : tensor.offset + tensor.nbytes] == expected, name
    assert [tensor.offset for tensor in header.tensors] == sorted(tensor.offset for tensor in header.tensors)


def test_the_settings_for_sampling_come_along(tmp_path: Path) -> None:
    source = llama4.scout(tmp_path / "source", num_hidden_layers=1)
    converters.convert(source, tmp_path / "mmproj.gguf", tower="vision")
    header = read_header(tmp_path / "mmproj.gguf")
    assert header.get("general.sampling.temp", float, 0.0) == pytest.approx(0.6)
    assert header.get("general.sampling.top_p", float, 0.0) == pytest.approx(0.9)
