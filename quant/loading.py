"""Which kernels a conversion takes, and how compiled ones come while it runs.

ggml's own (:mod:`quant.reference`) are there at once. :mod:`quant.compiled` has the same bytes several times as fast,
but must load numba first and, on a machine's first conversion, compile: worth it for models from some hundred million
weights on. :func:`loading_kernels` does that while ggml's kernels already work. ``EDGE_LLAMA_KERNELS`` decides
otherwise: ``ggml``, or ``compiled`` (from the first row on, whatever it takes).

Where llama-cpp-python is missing, or was built so that its bytes are not those of other machines, compiled kernels do
all the work: then a file's bytes don't depend on when a kernel was ready. Where these miss the expected bytes too, a
format is refused.
"""

import logging
import os
import subprocess
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

from edge_llama.errors import EngineError, OptionError
from edge_llama.files.formats import FORMATS, Format
from edge_llama.host import child
from edge_llama.host.user_cache import CACHE_VARIABLE
from quant import compiled, kernels, nbits
from quant.reference import ggml
from quant.reference.vectors import ggml_is_canonical, require_ggml

_log = logging.getLogger("edge_llama")
CHOICES = ("auto", "ggml", "compiled")
_NUMBA, _LLAMA_CPP = "pip install numba", "pip install llama-cpp-python"


class Need(NamedTuple):
    """What weights are to be quantized to, and whether by their columns' importance: that takes another kernel."""

    format: Format
    has_importance: bool = False


class _Kernel(NamedTuple):
    """A compiled kernel: a format's, or :data:`quant.compiled.GROUPS`."""

    name: str
    has_importance: bool = False


class _Cost(NamedTuple):
    """Of a format whose compiled kernel is faster than ggml's; both figures are about right."""

    ggml_rate: float
    """Weights a second and core that ggml's kernel makes."""
    compiling: float
    """Seconds."""


_COSTS = {
    compiled.GROUPS: _Cost(30e6, 4.0),  # numpy's, for which ggml has no kernel
    "q8_0": _Cost(240e6, 2.0),
    "iq4_nl": _Cost(4.5e6, 5.0),
    "iq4_xs": _Cost(4.5e6, 5.0),
    "q3_k": _Cost(70e6, 6.0),
    "q4_k": _Cost(14e6, 7.0),
    "q5_k": _Cost(16e6, 7.0),
    "q2_k": _Cost(16e6, 8.0),
    "q6_k": _Cost(30e6, 10.0),
}
_IMPORTANCE_RATES = {
    "q8_0": 240e6,
    "q4_0": 45e6,
    "q5_0": 36e6,
    **dict.fromkeys(("q4_1", "q5_1"), 7.5e6),
    **dict.fromkeys(("iq4_nl", "iq4_xs"), 4.5e6),
    "q2_k": 5e6,
    "q3_k": 34e6,
    "q4_k": 9e6,
    "q5_k": 7e6,
    "q6_k": 28e6,
}
"""The same of ggml's kernels with importance, which search where some don't without it."""
_COMPILING_WITH_IMPORTANCE = 8.0
_LOADING = 2.0
"""Seconds of ggml's work from which on loading numba is worth its while."""


def choice() -> str:
    """What ``EDGE_LLAMA_KERNELS`` says, ``auto`` if nothing; OptionError for anything unknown or not installed."""
    value = os.environ.get("EDGE_LLAMA_KERNELS") or "auto"
    if value not in CHOICES:
        raise OptionError(f"EDGE_LLAMA_KERNELS is {value!r}", remedy=f"known: {', '.join(CHOICES)}")
    if value == "compiled" and not compiled.is_available():
        raise OptionError("EDGE_LLAMA_KERNELS is compiled, but numba is not installed", remedy=_NUMBA)
    if value == "ggml" and not ggml.is_installed():
        raise OptionError("EDGE_LLAMA_KERNELS is ggml, but llama-cpp-python is not installed", remedy=_LLAMA_CPP)
    return value


def in_use() -> str:
    """Which kernels a conversion takes, in a sentence."""
    chosen = choice()
    if chosen == "ggml" or not compiled.is_available():
        why = "EDGE_LLAMA_KERNELS" if chosen == "ggml" else "numba is not installed: pip install 'edge-llama[convert]'"
        if not ggml.is_installed():
            return f"none: neither llama-cpp-python nor {why}"
        fault = _fault_of_ggml()
        return f"none: ggml's ({why}) {fault}" if fault else f"ggml's ({why})"
    ours = f"compiled for this machine ({_verdicts()})"
    if not ggml.is_installed():
        return f"{ours}; llama-cpp-python is not installed"
    if fault := _fault_of_ggml():
        return f"{ours}; ggml's {fault}"
    if chosen == "compiled":
        return f"{ours}, from the first row on (EDGE_LLAMA_KERNELS)"
    return f"{ours}; ggml's for small models, while ours are compiled, and for what is refused"


def _verdicts() -> str:
    """What is known of the compiled kernels: which gave the expected bytes here."""
    known = compiled.verdicts()
    accepted = "all" if len(known.accepted) == len(compiled.NAMES) else ", ".join(known.accepted)
    parts = [f"accepted: {accepted}"] if accepted else []
    if known.refused:
        parts.append(f"refused, for they give other bytes here: {', '.join(known.refused)}")
    return "; ".join(parts) or "none tried yet"


def _fault_of_ggml() -> str:
    """Why the installed ggml's kernels are not used, or ''; all formats of a library are built by the same flags."""
    try:
        is_canonical = ggml_is_canonical(FORMATS["q4_k"]) and ggml_is_canonical(FORMATS["q4_0"])
    except EngineError as error:
        return f"can't be had: {error}"
    if is_canonical:
        return ""
    return "are refused: they give other bytes here than elsewhere, as builds do that fuse products and sums"


def check_kernels(needs: Collection[Need], *, may_take_long: bool = False) -> None:
    """EngineError unless there are kernels here for all ``needs``; none is loaded yet.

    Unless it ``may_take_long``, the bytes of those that search codebooks are not looked at: ggml is seconds in setting
    up a codebook's tables.
    """
    needed = [need for need in _quantized(needs) if may_take_long or need.format.name not in ggml.CODEBOOKS]
    if len(needed) < len(_quantized(needs)):
        ggml.require("quantizing to formats below four bits takes ggml's own kernels")
    if not needed:
        return
    if choice() != "ggml" and compiled.is_available():
        for format_, has_importance in _without_compiled(needed):
            need = f"quantizing to {format_} takes ggml's own kernel"
            require_ggml(need, format_, has_importance=has_importance)
        return
    if not ggml.is_installed():
        raise EngineError(
            f"quantizing to {needed[0].format} takes llama-cpp-python or numba, and neither is installed",
            remedy=f"{_LLAMA_CPP}, or {_NUMBA}",
        )
    for format_, has_importance in needed:
        need = f"quantizing to {format_} without compiled kernels takes ggml's own"
        require_ggml(need, format_, has_importance=has_importance)


def _quantized(needs: Iterable[Need]) -> list[Need]:
    """Ggml's formats whose kernels are needed; floats and some of ONNX Runtime's grids take none."""
    found = [
        Need(kernel, has_importance)
        for format_, has_importance in needs
        if (kernel := nbits.kernel_format(format_.grid) if isinstance(format_, nbits.ArrayFormat) else format_)
    ]
    return list(dict.fromkeys(need for need in found if need.format.is_quantized))


def _without_compiled(needed: Iterable[Need]) -> list[Need]:
    """Those that ggml's kernels alone quantize to."""
    return [need for need in needed if need.format.name not in compiled.NAMES]


@contextmanager
def loading_kernels(work: Mapping[Need, int], threads: int) -> Iterator[None]:
    """While within, load the kernels that ``work`` (so many weights of each kind) is worth.

    ``threads`` share the work. With ``auto`` nobody waits where ggml's kernels give the bytes of every machine; else,
    and with ``compiled``, all kernels are ready at once. Raises EngineError for a format that nothing here quantizes.
    """
    chosen, needed = choice(), _quantized(work)
    check_kernels(work, may_take_long=True)
    if chosen == "compiled" or (chosen == "auto" and not _ggml_will_do(needed)):
        has_groups = any(_kernel_of(need).name == compiled.GROUPS for need in work)
        _load_all(needed, with_groups=chosen == "compiled" and has_groups)
    seconds = {
        kernel: weights / cost.ggml_rate / threads
        for need, weights in work.items()
        if (cost := _cost(kernel := _kernel_of(need))) and not _is_loaded(kernel)
    }
    if chosen != "auto" or not compiled.is_available() or sum(seconds.values()) < _LOADING:
        yield
        return
    loader = _Loader(sorted(seconds, key=lambda kernel: -seconds[kernel]), sum(seconds.values()))
    try:
        yield
    finally:
        loader.close()


def _kernel_of(need: Need) -> _Kernel:
    """The compiled kernel that makes it faster, if :func:`_cost` knows one."""
    format_ = need.format
    if isinstance(format_, nbits.ArrayFormat) and format_.grid.is_fitted and format_.part == "numbers":
        return _Kernel(compiled.GROUPS)
    return _Kernel(format_.name, need.has_importance)


def _cost(kernel: _Kernel) -> _Cost | None:
    """None where there is no compiled kernel, or none that is faster."""
    if not kernel.has_importance:
        return _COSTS.get(kernel.name)
    rate = _IMPORTANCE_RATES.get(kernel.name)
    return None if rate is None else _Cost(rate, _COMPILING_WITH_IMPORTANCE)


def _is_loaded(kernel: _Kernel) -> bool:
    if kernel.name == compiled.GROUPS:
        return kernels.fit_is_loaded()
    return kernels.is_loaded(FORMATS[kernel.name], has_importance=kernel.has_importance)


def _load(kernel: _Kernel) -> bool:
    """Whether the kernel gives the bytes that it should."""
    if kernel.name == compiled.GROUPS:
        return kernels.load_fit()
    return kernels.load(FORMATS[kernel.name], has_importance=kernel.has_importance)


def _ggml_will_do(needed: Collection[Need]) -> bool:
    """Whether ggml's kernels can begin: they give the expected bytes, or there are no others (which was checked)."""
    if not compiled.is_available():
        return True
    return all(ggml_is_canonical(format_, has_importance=has_importance) for format_, has_importance in needed)


def _load_all(needed: Collection[Need], *, with_groups: bool) -> None:
    try:
        if with_groups:
            kernels.load_fit()
        for format_, has_importance in needed:
            if not kernels.load(format_, has_importance=has_importance):
                need = f"the compiled kernel of {format_} gives other bytes than it should here"
                if format_.name not in compiled.NAMES:
                    need = f"quantizing to {format_} takes ggml's own kernel"
                require_ggml(need, format_, has_importance=has_importance)
    except OSError as error:
        raise EngineError(
            f"compiled kernels have no place: {error}", remedy=f"set {CACHE_VARIABLE} to a folder that can be written"
        ) from error


class _Loader:
    """Loads kernels in a thread; what was never compiled is compiled in a process of its own.

    There the compiler takes neither this process's lock nor its memory, and can be left unfinished.
    """

    def __init__(self, needed: list[_Kernel], seconds: float) -> None:
        self._needed = needed
        is_worth_it = seconds >= sum(cost.compiling for kernel in needed if (cost := _cost(kernel)))
        self._may_compile = is_worth_it and child.is_available()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kernels", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._load_all()
        except Exception as error:  # whatever numba or the file system has against it: ggml's kernels do the work
            _log.warning("compiled kernels are not used: %s: %s", type(error).__name__, error)

    def _load_all(self) -> None:
        import_module("quant.compiled.jit")  # numba loads while the first kernel is compiled elsewhere
        from quant.compiled.cache import key, verdict  # noqa: PLC0415 - raises OSError where there is no place for it

        for kernel in self._needed:
            noted = verdict(key(kernel.name, has_importance=kernel.has_importance))
            if noted is not None or (self._may_compile and self._compile(kernel)):
                _load(kernel)
            if self._is_closed.is_set():
                return

    def _compile(self, kernel: _Kernel) -> bool:
        """Whether the compiler came to its end before the work did."""
        arguments = (*(("--importance",) if kernel.has_importance else ()), kernel.name)
        command = child.command("quant.compiled.__main__", *arguments, watch="pipe")
        null = subprocess.DEVNULL
        with subprocess.Popen(  # noqa: S603 - our own code
            command,
            stdin=subprocess.PIPE,
            stdout=null,
            stderr=null,
            env=child.environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        ) as process:
            try:
                while process.poll() is None:
                    if self._is_closed.wait(0.05):
                        return False
            finally:
                process.kill()
        if process.returncode:
            said = " ".join(arguments)
            _log.warning(
                "the kernel of %s could not be compiled: python -m quant.compiled %s says why", kernel.name, said
            )
        return process.returncode == 0

    def close(self) -> None:
        """Stop what is not finished."""
        self._is_closed.set()
        self._thread.join()
