"""A config.json in the spelling of the checkpoints on the Hub says what the one says that transformers 5 writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest

from converters.architectures import for_config
from converters.architectures.hyperparameters import Hyperparameters
from converters.sources import open_checkpoint

DEFAULT_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256}
UNSAID = (*DEFAULT_HEADS, "rms_norm_eps", "hidden_activation", "rope_theta", "rope_local_base_freq", "layer_types")
"""What Gemma 3 4B's config.json leaves to the family's defaults."""


def read(folder: Path) -> Hyperparameters:
    checkpoint = open_checkpoint(folder)
    return for_config(checkpoint).hyperparameters(checkpoint)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads((folder / "config.json").read_text("utf-8"))
    content["torch_dtype"] = content.pop("dtype")
    change(content.get("text_config", content))
    (folder / "config.json").write_text(json.dumps(content), "utf-8")
    return folder


def with_fields_beside(text: dict[str, Any]) -> None:
    """RoPE's base beside its scaling, which is null where there is none."""
    text |= {"rope_theta": text.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    text.pop("layer_types", None)


def as_gemma(text: dict[str, Any]) -> None:
    """Two bases beside the scaling, which is the full layers' alone, and a number in place of the list of layers."""
    ropes = text.pop("rope_parameters")
    whole, local = ropes["full_attention"], ropes["sliding_attention"]
    text |= {"rope_theta": whole.pop("rope_theta"), "rope_local_base_freq": local["rope_theta"]}
    text["rope_scaling"] = None if whole["rope_type"] == "default" else whole
    del text["layer_types"], text["_sliding_window_pattern"]
    text["sliding_window_pattern"] = 6


SPELLINGS = {
    families.qwen2: with_fields_beside,
    families.qwen3: with_fields_beside,
    families.smollm3: with_fields_beside,
    families.mistral: with_fields_beside,
    families.gemma3: as_gemma,
    families.gemma3_with_vision: as_gemma,
}


@pytest.mark.parametrize("make", SPELLINGS, ids=[make.__name__ for make in SPELLINGS])
def test_the_older_spelling_says_the_same(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "source")
    expected = read(folder)
    assert read(rewritten(folder, SPELLINGS[make])) == expected


def test_what_gemma_3_leaves_unsaid_is_its_familys_default(tmp_path: Path) -> None:
    """As 4B was published: sizes, the window and RoPE's scaling; the rest follows. transformers reads it so too."""
    folder = families.gemma3_with_vision(tmp_path / "source", **DEFAULT_HEADS)
    expected, ids = read(folder), list(range(20, 60))
    logits = families.prompt_logits(families.reference(folder), ids)

    def leave_out(text: dict[str, Any]) -> None:
        as_gemma(text)
        for key in (*UNSAID, "sliding_window_pattern"):
            text.pop(key, None)

    assert read(rewritten(folder, leave_out)) == expected
    assert np.array_equal(families.prompt_logits(families.reference(folder), ids), logits)
