"""The options of :func:`edge_llama.open`: to add one, add a field here.

``open`` takes it, ``run`` and ``chat`` show it in their help and pass it on, and an editor completes it. What it does
is up to who reads it from :class:`OpenOptions`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast, get_type_hints

from edge_llama.errors import OptionError
from edge_llama.prompts.messages import check_text
from edge_llama.sampling.option_text import OptionText, is_name, parse_on_or_off
from edge_llama.sampling.params import check_whole


@dataclass(frozen=True, slots=True)
class Option:
    """How an option is checked, and how people write it."""

    check: Callable[[str, Any], Any] = lambda _name, value: value
    """Given the option's name and a value that is not None: the value to use. Raises OptionError."""
    text: OptionText | None = None
    """How the command line takes it; None: it doesn't have it."""
    flag: str = ""
    """Without dashes; the option's own name if empty."""
    is_saved: bool = False
    """Saved with a session: opened otherwise, the model would have to prefill it again."""


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    return lambda name, value: check_whole(name, value, least, most)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}, expected True or False")
    return value


def _folder(name: str, value: Any) -> Path:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"{name} is {value!r:.100}, expected a folder's path as text")
    return Path(path)


def _template(name: str, value: Any) -> str:
    """Without the mark that some editors put before a file's text."""
    check_text(value, name)
    return cast("str", value).removeprefix("\ufeff")


class OpenOptions(TypedDict, total=False):
    """What :func:`edge_llama.open` may be told; what is left out or None is chosen for the model and the machine."""

    n_ctx: Annotated[
        int | None,
        Option(
            _whole(2, 2**31 - 1),
            text=OptionText(help="Tokens of context. Default: what is useful and fits the memory.", kind=int),
            is_saved=True,
        ),
    ]
    """Tokens of context. None: what the model was trained for, as far as it is useful and fits the memory
    (``Model.context`` says)."""
    threads: Annotated[
        int | None,
        Option(
            _whole(1, 512),
            text=OptionText(
                help="CPU threads. Default: as many as there are free cores, from token to token.", kind=int
            ),
        ),
    ]
    """CPU threads. None: the cores that are free, from token to token; with flash attention on, and only then, their
    number changes how numbers are rounded. An ONNX model keeps the number that it was opened with."""
    n_batch: Annotated[
        int | None,
        Option(
            _whole(1, 4096),
            text=OptionText(
                help="Tokens of a prompt that are computed together. Default: as measured once, mostly 512.", kind=int
            ),
            flag="batch",
        ),
    ]
    """Tokens of a prompt that are computed together. None: 512, or as measured with ``tune``."""
    flash_attention: Annotated[
        bool | None,
        Option(
            text=OptionText(
                help="Flash attention: faster prompts, slower answers on most CPUs. Default: as measured once.",
                metavar="on|off",
                parse=parse_on_or_off,
            ),
            flag="flash-attn",
            is_saved=True,
        ),
    ]
    """None: off, because generation on a CPU is faster without (prompts are faster with); on a GPU on. The graph of an
    ONNX model decides it: there it is an error."""
    kv_format: Annotated[
        str | None,
        Option(
            text=OptionText(
                help="Format of the KV cache. Default: f16, or f32 where that was measured faster; q8_0 takes half.",
                metavar="f16|f32|q8_0",
            ),
            flag="kv",
            is_saved=True,
        ),
    ]
    """The KV cache's format: f16 (None), f32 or q8_0. An error for an ONNX model, as flash attention is."""
    device: Annotated[
        str,
        Option(
            text=OptionText(
                help="auto takes a GPU if llama.cpp is built for one and the model fits. For an ONNX model: an "
                "execution provider (cuda, openvino, npu:qnn, ...). Default: auto.",
                metavar="auto|cpu|gpu|...",
            ),
            is_saved=True,
        ),
    ]
    """Where the text tower runs: auto takes a GPU if llama.cpp is built for one and the model fits it; or cpu, or gpu.
    For an ONNX model auto is the cpu; others by their names (cuda, openvino, npu:qnn, ...) take the whole model or are
    an error."""
    vision_device: Annotated[
        str,
        Option(
            text=OptionText(
                help="The same for the vision tower. Default: the cpu, where one for llama.cpp always runs.",
                metavar="auto|cpu|...",
            ),
            is_saved=True,
        ),
    ]
    """Where the vision tower runs, as ``device``: npu:qnn, openvino, ...; auto is the cpu."""
    tune: bool
    """Have a measurement choose batch, flash attention and the KV cache's format where they are None: half a second
    once for a model file, then remembered in the user's cache folder (``Model.choice`` says). Without it nothing
    outside the call decides."""
    chat_template: Annotated[
        str | None,
        Option(
            _template,
            text=OptionText(
                help="A Jinja chat template in place of the model's own, or the name of another that it has.",
                metavar="FILE|NAME",
                kind=Path,
                is_file=True,
                is_inline=is_name,
            ),
        ),
    ]
    """Jinja text in place of the model's own chat template, or the name of another that it has (``tool_use``)."""
    max_running: Annotated[int | None, Option(_whole(1, 64))]
    """Requests that are served at once: 8 (None). Others wait. An ONNX model, and one with recurrent states, serves one
    after the other."""
    max_queued: Annotated[int | None, Option(_whole(0, 2**31 - 1))]
    """Requests that may wait: 64 (None). One more is a BusyError."""
    kv_cells: Annotated[int | None, Option(_whole(2, 2**31 - 1))]
    """Positions of KV cache that all conversations share; what they have in common counts once. None: ``n_ctx``. Each
    may use all of ``n_ctx``: what does not fit waits, or is moved to memory and back."""
    deterministic: Annotated[bool, Option(_flag)]
    """Answers that are the same, byte for byte, whatever else the model is asked: requests are served one after the
    other, and only whole batches of a prompt are reused, as they were prefilled."""
    cache_bytes: Annotated[int | None, Option(_whole(0, 2**63 - 1))]
    """Memory that may keep what was prefilled while others use the KV cache; None: as much as that takes. Never more
    than half of what is free."""
    cache_dir: Annotated[str | os.PathLike[str] | None, Option(_folder)]
    """A folder where what was prefilled is kept when the model is closed, or others need the memory: it is there after
    a restart. Files of all models lie there, the least recently used go beyond 4 GB. None: nothing is written."""
    cache_tagged_only: Annotated[bool, Option(_flag)]
    """Keep in ``cache_dir`` conversations with a tag alone (``model.sessions.tag``): all of one can be forgotten."""
    vision: Annotated[
        str | os.PathLike[str] | None,
        Option(
            text=OptionText(
                help="A vision tower for the text model: a bundle, its .onnx file or an mmproj .gguf.",
                metavar="FILE",
                kind=Path,
            ),
        ),
    ]
    """The file of a vision tower (a bundle, its ``.onnx`` file, an mmproj ``.gguf``) in place of the model's own."""
    max_tiles: Annotated[
        int | None,
        Option(
            _whole(1, 256),
            text=OptionText(
                help="See each picture in so many tiles at most: fewer take less time and context, and show less.",
                kind=int,
            ),
            is_saved=True,
        ),
    ]
    """Images are cut into so many tiles at most; None: as many as the model knows."""


@cache
def described() -> Mapping[str, Option]:
    """Every option by its name, in their order."""
    hints = get_type_hints(OpenOptions, include_extras=True)
    return {
        name: next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Option)), Option())
        for name, hint in hints.items()
    }


SAVED = tuple(name for name, option in described().items() if option.is_saved)
"""Names of options that sessions keep."""


def checked(options: Mapping[str, Any]) -> OpenOptions:
    """The options that were given and are not None, each checked. Raises OptionError, TypeError for an unknown one."""
    known = described()
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"open() got an unexpected keyword argument {unknown[0]!r}")
    found = {name: known[name].check(name, value) for name, value in options.items() if value is not None}
    return cast("OpenOptions", found)
