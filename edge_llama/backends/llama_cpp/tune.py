"""How fast a model's attention is under each of llama.cpp's settings, measured in a fraction of a second.

Flash attention, the cache's format and the batch change the cost of attention alone, and that shows only once much was
read: with a whole model a measurement takes seconds to minutes. So one layer with the model's heads and small other
parts stands for it. All settings take turns, with one thread, and the best of a setting's times counts: so others that
use the machine disturb each alike, and little.
"""

import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from edge_llama.backends.base import CacheSize, Figure, OneSequence, Setting
from edge_llama.backends.llama_cpp.text import LlamaCppTower
from edge_llama.backends.llama_cpp.tiny_models import tiny_model
from edge_llama.files.gguf_text import GGUFArtifact, read_gguf_text
from edge_llama.host import devices

_DECODES, _PREFILLS = 12, 2  # decodes of one token, and of the last batch, for each setting
_BLOCK = 512


def measure(artifact: GGUFArtifact) -> list[Figure]:
    """Times of one layer of this model's attention under each setting; none if its heads can't be imitated."""
    geometry = _geometry(artifact)
    if geometry is None:
        return []
    depth = 1024 if geometry["heads"] * geometry["head_dim"] <= 1024 else _BLOCK
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "attention.gguf"
        path.write_bytes(tiny_model(**geometry, n_ctx=depth + 64))
        tiny = read_gguf_text(path)
        opened = {setting: stack.enter_context(closing(_open(tiny, depth, setting))) for setting in _settings()}
        towers = {setting: OneSequence(tower) for setting, tower in opened.items()}
        for tower in towers.values():
            _prefill(tower, 0, depth)
        return _figures(towers, depth)


def _figures(towers: dict[Setting, OneSequence], depth: int) -> list[Figure]:
    decode: dict[Setting, list[float]] = {setting: [] for setting in towers}
    prefill: dict[Setting, list[float]] = {setting: [] for setting in towers}
    for _ in range(_DECODES):
        for setting, tower in towers.items():
            decode[setting].append(_timed(tower, depth, 1))
    for _ in range(_PREFILLS):
        for setting, tower in towers.items():
            prefill[setting].append(_timed(tower, depth - _BLOCK, _BLOCK) / _BLOCK)
    return [Figure(setting, depth, min(prefill[setting]), min(decode[setting])) for setting in towers]


def _settings() -> list[Setting]:
    settings = [Setting(), Setting(flash_attention=True), Setting(n_batch=128)]
    cpu = devices.cpu()
    # Where a processor converts f16 by itself, reading twice as many bytes can only be slower.
    if "f16c" not in cpu.features and cpu.machine.lower() not in ("arm64", "aarch64"):
        settings.append(Setting(kv_format="f32"))
    return settings


def _geometry(artifact: GGUFArtifact) -> dict[str, int] | None:
    def number(key: str, default: int = 0) -> int:
        value: Any = artifact.header.fields.get(f"{artifact.architecture}.{key}")
        data = default if value is None else value.data
        return data if isinstance(data, int) and data > 0 else 0

    heads = number("attention.head_count")
    kv_heads = number("attention.head_count_kv", heads)
    head_dim = number("attention.key_length", number("embedding_length") // heads if heads else 0)
    if not kv_heads or not 16 <= head_dim <= 256 or heads > 256 or heads % kv_heads or heads * head_dim % 32:
        return None
    return {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}


def _open(tiny: GGUFArtifact, depth: int, setting: Setting) -> LlamaCppTower:
    return LlamaCppTower(
        tiny,
        cache=CacheSize.of_one(depth + 64),
        threads=1,
        flash_attention=bool(setting.flash_attention),
        kv_format=setting.kv_format,
        n_batch=setting.n_batch,
    )


def _timed(tower: OneSequence, depth: int, count: int) -> float:
    """Seconds for ``count`` tokens after ``depth`` others."""
    tower.cut(depth)
    started = time.perf_counter()
    _prefill(tower, depth, depth + count)
    return time.perf_counter() - started


def _prefill(tower: OneSequence, start: int, end: int) -> None:
    step = tower.tower.n_batch
    for at in range(start, end, step):
        tower.decode([token % 500 for token in range(at, min(at + step, end))])  # it waits for the work to be done
