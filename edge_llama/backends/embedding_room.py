"""How much memory an engine takes to embed texts: for what most of them are, and more only for longer ones."""

from edge_llama.errors import OptionError
from edge_llama.files.artifact import Artifact
from edge_llama.host import devices

CUT = "cut the texts into shorter ones"
"""What may be done where memory does not suffice."""
_LEAST = 512  # tokens: few texts have more
_STEP = 256  # llama.cpp pads a cache to this


def positions(longest: int, artifact: Artifact) -> int:
    """Positions to keep for texts of up to ``longest`` tokens: no more than the model was trained for, if they fit."""
    padded = -(-max(longest, _LEAST) // _STEP) * _STEP
    return min(padded, max(artifact.n_ctx_train, longest))


def check_memory(
    artifact: Artifact, longest: int, nbytes: int, remedy: str = "cut the texts into shorter ones"
) -> None:
    """OptionError if texts of up to ``longest`` tokens take more than there is."""
    if nbytes > (available := devices.available_memory()):
        raise OptionError(
            f"{artifact.path}: to embed texts of {longest:,} tokens takes {nbytes:,} bytes more, "
            f"{available:,} are available",
            remedy=remedy,
        )
