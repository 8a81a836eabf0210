"""What ``edge-llama compile`` writes beside a model: its graphs as the engine of one device compiled them.

    MODEL/compiled/npu-qnn/           for this machine's NPU
    MODEL/compiled/npu-qnn-sm8650/    for a phone's

Each is a bundle of its own, which can be copied to the device and opened there; ``compiled.json`` in it says by what
and for what. No native code.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_llama.errors import ArtifactError
from edge_llama.files.json_fields import Fields

NAME, FOLDER = "compiled.json", "compiled"
SETTINGS = "settings"
_MAX_BYTES = 1 << 16
_AGAIN = "compile again: edge-llama compile"


@dataclass(frozen=True, slots=True)
class Compiled:
    """By what, for what, and of what the graphs in a folder were compiled."""

    device: str
    """As ``--device`` takes it: ``npu:qnn``."""
    package: str
    """The distribution of the device's provider, and its version: what other versions compiled may not load."""
    machine: str
    """The kind of machine that they were compiled for, ``x86_64``; "" where a chip was named."""
    soc: str
    """The chip that was named, ``SM8650``; "": that of the machine."""
    shares: bool
    """Whether a text tower's two graphs have their weights in one file."""
    options: tuple[str, ...]
    """What the provider was told besides, ``KEY=VALUE`` each."""
    sources: Mapping[str, str]
    """What was compiled: the identities of the towers, ``text`` and ``vision``, and of the text's ``settings``."""

    @property
    def towers(self) -> tuple[str, ...]:
        """``text``, ``vision``."""
        return tuple(name for name in self.sources if name != SETTINGS)

    def encode(self) -> bytes:
        """The file's bytes."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False).encode() + b"\n"


def read_compiled(folder: Path) -> Compiled | None:
    """What compiled.json in ``folder`` says; None if there is none. ArtifactError if it is damaged."""
    path = folder / NAME
    if not path.is_file():
        return None
    fields = Fields.read(path, _MAX_BYTES, _AGAIN)
    options, sources = fields.get("options", list, []), fields.get("sources", dict)
    if not all(isinstance(text, str) for text in (*options, *sources.values())):
        raise ArtifactError(f"{path}: options or sources hold what is no text", remedy=_AGAIN)
    return Compiled(
        device=fields.get("device", str),
        package=fields.get("package", str),
        machine=fields.get("machine", str, ""),
        soc=fields.get("soc", str, ""),
        shares=fields.flag("shares"),
        options=tuple(options),
        sources=sources,
    )


def folder_for(model: Path, device: str, soc: str = "") -> Path:
    """Where the towers in the folder ``model`` lie, compiled for ``device``."""
    return model / FOLDER / "-".join(filter(None, (device, soc.lower()))).replace(":", "-")
