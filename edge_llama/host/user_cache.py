"""What was found out about this machine, kept in the user's cache folder: one small JSON file per finding.

A finding is looked up by all that it depends on, so what no longer applies is never found again. Losing the folder
loses nothing but time: a file that can't be read is as one that is not there, a folder that can't be written is left.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_llama.host.atomic import new_file

_log = logging.getLogger(__name__)
CACHE_VARIABLE = "EDGE_LLAMA_CACHE"


def folder() -> Path:
    """``$EDGE_LLAMA_CACHE``, else the system's cache folder for the user. OSError if the user has no home."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    import platformdirs  # noqa: PLC0415 - only when a model is opened

    try:
        return platformdirs.user_cache_path("edge-llama")
    except RuntimeError as error:  # as in a container that runs under a number nobody has
        raise OSError(str(error)) from error


def recall(kind: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The finding of this ``kind`` that was remembered under exactly this ``key``, or None."""
    try:
        kept = json.loads(_path(kind, key).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.debug("a finding of kind %s is not used: %s", kind, error)
        return None
    if not isinstance(kept, dict) or kept.get("key") != _plain(key) or not isinstance(kept.get("found"), dict):
        return None
    return dict(kept["found"])


def remember(kind: str, key: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Keep ``found`` under ``key`` (both as JSON has them), complete or not at all; only its owner may read it.

    Whether it could be kept.
    """
    try:
        path = _path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path, is_private=True) as file:
            file.write(json.dumps({"key": key, "found": found}, indent=1).encode())
    except OSError as error:
        _log.debug("a finding of kind %s is not remembered: %s", kind, error)
        return False
    return True


def _path(kind: str, key: Mapping[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True)
    return folder() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(key))
