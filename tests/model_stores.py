"""A home with other programs' models."""

import json
from pathlib import Path
from typing import Any

HASH = "0123456789abcdef" * 4
MODEL, PROJECTOR, TENSOR = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "projector", "tensor"))


def environment(home: Path) -> dict[str, str]:
    """In which nothing but what lies below ``home`` is found."""
    own = ("EDGE_LLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE", "OLLAMA_MODELS")
    return {**dict.fromkeys(own, ""), "HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home)}


def ollama(home: Path, name: str, content: dict[str, Any], root: str = "manifests") -> Path:
    """A manifest of Ollama's."""
    path = home / ".ollama" / "models" / root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
