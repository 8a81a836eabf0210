"""The options of :func:`edge_llama.open`: to add one, add a field here.

``open`` takes it, ``run`` and ``chat`` show it in their help and pass it on, and an editor completes it. What it does
is up to who reads it from :class:`OpenOptions`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast, get_type_hints

from edge_llama.errors import OptionError, check_known
from edge_llama.prompts.messages import check_text
from edge_llama.sampling.option_text import OptionText, is_name, parse_on_or_off
from edge_llama.sampling.params import check_whole

SPLIT_MODES = ("layer", "row", "tensor")
"""How several GPUs share a model: by layers, or every matrix among all (llama.cpp's ways)."""
ALL = "all"
"""What ``--cpu-moe`` means without a number."""


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
    where: Literal["here", "remote", "both"] = "here"
    """Which models have it: those that run here, those that a server runs, or both."""


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    return lambda name, value: check_whole(name, value, least, most)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}, expected True or False")
    return value


def _function(name: str, value: Any) -> Callable[..., object]:
    if not callable(value):
        raise OptionError(f"{name} is {value!r:.100}, expected a function")
    return cast("Callable[..., object]", value)


def _text(name: str, value: Any) -> str:
    check_text(value, name)
    return cast("str", value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise OptionError(f"{name} is {value!r:.100}, expected a list of texts")
    for text in value:
        check_text(text, name)
    return tuple(value)


def _split_mode(name: str, value: Any) -> str:
    if value not in SPLIT_MODES:
        raise OptionError(f"{name} is {value!r:.100}", remedy=f"known: {', '.join(SPLIT_MODES)}")
    return cast("str", value)


def _proportions(name: str, value: Any) -> tuple[float, ...]:
    """A number for each device, not negative, not all 0."""
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    is_right = all(not isinstance(each, bool) and isinstance(each, int | float) and 0 <= each < inf for each in numbers)
    if not is_right or not any(numbers):
        raise OptionError(f"{name} is {value!r:.100}, expected a proportion for each device, such as (3, 1)")
    return tuple(map(float, numbers))


def _parse_proportions(text: str, where: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        raise OptionError(f"{where} {text:.100}: expected a proportion for each device, such as 3,1") from error


def _first_layers(name: str, value: Any) -> int | bool:
    return value if isinstance(value, bool) else check_whole(name, value, 0, 2**31 - 1)


def _parse_first_layers(text: str, where: str) -> int | bool:
    if text == ALL:
        return True
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise OptionError(f"{where} {text:.100}: expected a number of layers, or nothing for all of them")
    return int(text)


def _folder(name: str, value: Any) -> Path:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"{name} is {value!r:.100}, expected a folder's path as text")
    return Path(path)


def _template(name: str, value: Any) -> str:
    """Without the mark that some editors put before a file's text."""
    check_text(value, name)
    return cast("str", value).removeprefix("\ufeff")


def _adapters(name: str, value: Any) -> dict[str, str]:
    """Files by name; of a list each is called as its file is, without the ending."""
    if isinstance(value, Mapping):
        return {_adapter_name(name, called): _adapter_path(name, path) for called, path in value.items()}
    if not isinstance(value, list | tuple):
        raise OptionError(f"{name} is {value!r:.100}, expected files by name, or a list of files")
    found: dict[str, str] = {}
    for path in (_adapter_path(name, each) for each in value):
        called = Path(path).stem
        if called in found:
            raise OptionError(f"{name}: two are called {called!r:.100}", remedy="give them names: {name: path}")
        found[called] = path
    return found


def _adapter_name(name: str, called: Any) -> str:
    check_text(called, name)
    if not called:
        raise OptionError(f"{name}: one has an empty name")
    return cast("str", called)


def _adapter_path(name: str, value: Any) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"{name}: {value!r:.100} is no file's path as text")
    return path


class OpenOptions(TypedDict, total=False):
    """What :func:`edge_llama.open` may be told; what is left out or None is chosen for the model and the machine.

    Examples:
        >>> options: edge_llama.OpenOptions = {"n_ctx": 256, "threads": 1, "deterministic": True}
        >>> with edge_llama.open(**options) as model:
        ...     print(model.n_ctx, model.threads)
        256 1
    """

    n_ctx: Annotated[
        int | None,
        Option(
            _whole(2, 2**31 - 1),
            text=OptionText(help="Tokens of context. Default: what is useful and fits the memory.", kind=int),
            is_saved=True,
            where="both",
        ),
    ]
    """Tokens of context. None: what the model was trained for, as far as it is useful and fits the memory
    (``Model.context`` says); of one on a server, what that says."""
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
                help="Format of the KV cache. Default: f16, or f32 where that was measured faster; q8_0 takes half of "
                "f16, q4_0 a quarter.",
                metavar="f16|f32|q8_0|q4_0",
            ),
            flag="kv",
            is_saved=True,
        ),
    ]
    """The KV cache's format: f16 (None), f32, q8_0 or q4_0. An error for an ONNX model, as flash attention is."""
    device: Annotated[
        str,
        Option(
            _text,
            text=OptionText(
                help="auto takes what was measured faster for the model; cpu, gpu, or a kind: cuda, metal, vulkan, "
                "rocm, sycl, webgpu, coreml, directml, openvino[:cpu|gpu], npu[:qnn|openvino]. cuda:1 is the second "
                "one, cuda:0,cuda:1 are two that share the model. Default: auto.",
                metavar="auto|cpu|gpu|KIND[:N]|...",
            ),
            is_saved=True,
        ),
    ]
    """Where the text tower runs (:mod:`edge_llama.backends.device_names`). ``auto`` takes a GPU that the model fits
    whole, if it was measured faster than the CPU. ``gpu`` and the kinds of GPUs take as many layers as fit, of an ONNX
    model all that its provider takes. A device that is not here is an error."""
    strict_device: Annotated[
        bool,
        Option(
            _flag,
            text=OptionText(
                help="An error, which names them, if layers or nodes run elsewhere than on that device.", kind=bool
            ),
        ),
    ]
    """Make it an error, which names them, if layers or nodes of a tower run elsewhere than on the device that was asked
    for. Without it they run on the CPU, and ``Model.placement`` says so."""
    split_mode: Annotated[
        str | None,
        Option(
            _split_mode,
            text=OptionText(
                help="How several GPUs share a GGUF model: by layers, or each has a part of every matrix. "
                "Default: layer.",
                metavar="|".join(SPLIT_MODES),
            ),
        ),
    ]
    """How several GPUs share a GGUF model: ``layer`` (None), ``row``, or ``tensor``: experimental in llama.cpp."""
    tensor_split: Annotated[
        tuple[float, ...] | list[float] | None,
        Option(
            _proportions,
            text=OptionText(
                help="What each GPU gets of a GGUF model, as proportions. Default: by the memory that is free there.",
                metavar="A,B,...",
                parse=_parse_proportions,
            ),
        ),
    ]
    """What each GPU gets of a GGUF model, as proportions in the devices' order. None: by the memory that is free."""
    cpu_moe: Annotated[
        int | bool,
        Option(
            _first_layers,
            text=OptionText(
                help="Keep experts of a GGUF model on the CPU, of the first N layers or of all: the rest may then "
                "fit a GPU.",
                metavar="[N]",
                parse=_parse_first_layers,
            ),
        ),
    ]
    """Keep the experts of a GGUF model on the CPU: of so many first layers, or of all (True)."""
    provider_options: Annotated[
        tuple[str, ...] | list[str] | None,
        Option(
            _texts,
            text=OptionText(
                help="Tell ONNX Runtime's provider of the device, such as htp_performance_mode=burst. May be repeated.",
                metavar="KEY=VALUE",
                is_repeated=True,
            ),
            flag="provider-option",
        ),
    ]
    """What ONNX Runtime's execution provider of the device is told, ``KEY=VALUE`` each: for ``npu:qnn`` and OpenVINO's
    devices. A key that it does not take is an error with those that it does."""
    vision_device: Annotated[
        str,
        Option(
            _text,
            text=OptionText(
                help="The same for the vision tower. Default: the cpu.",
                metavar="auto|cpu|gpu|KIND[:N]|...",
            ),
            is_saved=True,
        ),
    ]
    """Where the vision tower runs, as ``device``; auto is the cpu, and a device takes all of it."""
    on_progress: Annotated[Callable[[float], object] | None, Option(_function)]
    """Called with the part of a GGUF file's weights that is loaded, 0 to 1, while ``open`` works; by ``isolate`` from a
    thread of its own. What it raises ends the opening, and comes from ``open``. A trial run in a child, which a file of
    another program has the first time, comes before that; ONNX Runtime does not tell how far it is."""
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
            where="both",
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
    mmap: Annotated[
        bool,
        Option(
            _flag,
            text=OptionText(
                help="Leave a GGUF file's weights on the disk and read them as they are needed: for experts "
                "that memory does not hold. Change the file meanwhile, and the process ends.",
                kind=bool,
            ),
        ),
    ]
    """Leave a GGUF file's weights where they are and map them, so that memory need not hold what a token does not need:
    experts. What memory lacks is read from the disk again for every token. A file that is cut short or overwritten
    meanwhile ends the process, so this is best done with ``isolate``."""
    force_fit: Annotated[
        bool,
        Option(
            _flag,
            text=OptionText(help="Open the model although it does not fit the memory by our arithmetic.", kind=bool),
        ),
    ]
    """Open the model although it does not fit the memory by our arithmetic: the system may then end the process, or
    write pages out and become slow."""
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
    adapters: Annotated[
        Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]] | None, Option(_adapters)
    ]
    """LoRA adapters in GGUF files, by the names that answers ask for them with; of a list each is called as its file
    is, without the ending. The model alone answers who asks for none. An ONNX model takes none."""
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
    tokenizer: Annotated[
        str | os.PathLike[str] | None,
        Option(
            text=OptionText(
                help="For a model on a server: its tokenizer and chat template, of the checkpoint's folder, a .gguf "
                "file of the same model, or a name that models shows.",
                metavar="FOLDER|FILE",
                kind=Path,
            ),
            where="remote",
        ),
    ]
    """For a model that a server runs: its tokenizer and chat template, which work here. A folder with tokenizer.json or
    tokenizer.model, as its checkpoint has it, or what can be opened of the same model: its weights are not read."""
    remote_model: Annotated[
        str | None,
        Option(
            _text,
            text=OptionText(help="For a model on a server: its name there. Default: the only one.", metavar="NAME"),
            where="remote",
        ),
    ]
    """The name of the model on the server. None: the only one that it has."""
    api_key_variable: Annotated[
        str | None,
        Option(
            _text,
            text=OptionText(
                help="For a model on a server: the environment variable that holds its key. Default: "
                "EDGE_LLAMA_REMOTE_API_KEY, if that is set.",
                metavar="VARIABLE",
            ),
            where="remote",
        ),
    ]
    """The environment variable that holds the key for the server. None: ``EDGE_LLAMA_REMOTE_API_KEY``, if it is set."""


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
    """The options that were given and are not None, each checked. OptionError, UnknownOptionError for none of them."""
    known = described()
    check_known(options, known, "open", besides=("isolate", "model"))
    found = {name: known[name].check(name, value) for name, value in options.items() if value is not None}
    return cast("OpenOptions", found)


def check_place(options: OpenOptions, *, is_remote: bool) -> None:
    """OptionError for an option that models which run here, or on a server, do not have."""
    other: Literal["here", "remote"] = "here" if is_remote else "remote"
    for name in options:
        if described()[name].where == other:
            whose = "models that run here" if is_remote else "a model that a server runs"
            raise OptionError(f"{name} is for {whose}", remedy="leave it out, or open another model")


def options_here(options: OpenOptions) -> OpenOptions:
    """Those that models which run here have."""
    known = described()
    return cast("OpenOptions", {name: value for name, value in options.items() if known[name].where != "remote"})
