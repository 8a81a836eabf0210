"""Every error that edge-llama raises on purpose.

    EdgeLlamaError                    something went wrong and we know what (exit 1 on the command line)
    ├── EngineError                   the engine failed at work that should have succeeded
    │   ├── BusyError                 more requests wait than may; carries the numbers
    │   ├── DeadlineError             a request was not done by its deadline
    │   ├── EngineDiedError           the model's own process ended: how, and its last words
    │   └── RemoteError               a server that runs the model can't be reached, broke off, or answered wrongly
    ├── FidelityError                 a converted model is not what its checkpoint is; carries the faults
    ├── NotVerifiableError            a model file that carries no hashes
    └── InputError (ValueError)       what the caller gave can't be used (exit 2)
        ├── CopyError (TypeError)     a Model, Chat or Generation was pickled or copied
        ├── OptionError               an argument or option outside its range
        │   └── UnknownOptionError (TypeError)   there is no such option; names the nearest
        ├── CheckpointError           a source checkpoint that can't be converted
        ├── ArtifactError             a model file that can't be opened
        ├── OutputError               an output that can't be written
        ├── SessionError              a session file that can't be used, or is of another model
        ├── DocumentError             a document whose text can't be had: damaged, encrypted, too large, none in it
        ├── HistoryError              the history of conversations can't be used, or has no such conversation
        ├── TemplateError             a chat template that is missing, broken or unsafe
        └── ContextFullError          a prompt longer than the context, a text to embed, or files that don't fit;
                                      carries both numbers

A message says what, where and the value; ``remedy`` says what to do about it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

_JOINING = "\u200c\u200d\u3000"
"""Not printable by Python's letter, and harmless: what joins letters and emoji, and the space of CJK text."""
UNREADABLE = "see to its permissions, or get it again"
"""The remedy for a file that is there and can't be read."""


class EdgeLlamaError(Exception):
    """The root: catch this to catch everything that edge-llama raises on purpose.

    Examples:
        >>> try:
        ...     edge_llama.open("docs/README.md")
        ... except edge_llama.EdgeLlamaError as error:
        ...     print(error.exit_code, error.remedy != "")
        2 True
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as it is, whatever it is built from: it comes whole out of a pool's process."""
        return _rebuilt, (type(self), self.args, dict(vars(self)))

    def __str__(self) -> str:
        """One line, whatever the parts contain."""
        text = f"{self.message}; {self.remedy}" if self.remedy else self.message
        return printable(" ".join(text.split()))


def _rebuilt(kind: type[EdgeLlamaError], args: tuple[Any, ...], fields: Mapping[str, Any]) -> EdgeLlamaError:
    error = kind.__new__(kind, *args)
    vars(error).update(fields)
    return error


def printable(text: str) -> str:
    """``text`` without what could command a terminal or can't be printed: such characters become escapes."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in _JOINING else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


class EngineError(EdgeLlamaError):
    """The engine failed at work that should have succeeded.

    Examples:
        >>> chat = model.chat()
        >>> answer = chat.send("Tell a very long story.", max_tokens=200)
        >>> chat.send("Hello!")  # a chat answers one message after the other
        Traceback (most recent call last):
        edge_llama.errors.EngineError: an answer is still being made; take it to its end, or close it
        >>> answer.close()
    """


class BusyError(EngineError):
    """More requests wait than may: ``queued`` of ``max_queued``, while ``running`` are being answered.

    Examples:
        >>> error = edge_llama.BusyError(running=8, queued=64, max_queued=64)
        >>> print(error)
        the model is busy: 8 requests are running and 64 wait, at most 64 may; try again later, ...
    """

    def __init__(self, running: int, queued: int, max_queued: int) -> None:
        super().__init__(
            f"the model is busy: {running:,} requests are running and {queued:,} wait, at most {max_queued:,} may",
            remedy="try again later, or open the model with a larger max_queued",
        )
        self.running = running
        self.queued = queued
        self.max_queued = max_queued


class DeadlineError(EngineError):
    """A request was not done by its deadline.

    Examples:
        >>> model.chat().send("Tell a very long story.", deadline=0.001).result()
        Traceback (most recent call last):
        edge_llama.errors.DeadlineError: the request was not done by its deadline; give it more time, or ask for less
    """

    def __init__(self) -> None:
        super().__init__("the request was not done by its deadline", remedy="give it more time, or ask for less")


class EngineDiedError(EngineError):
    """The process of a model that is open with ``isolate=True`` ended; the next call starts another.

    ``cause`` is the signal's name (``SIGKILL``) or what the process ended with (``exit code 1``); ``stderr`` are the
    last 4 KB that it wrote there.

    Examples:
        >>> error = edge_llama.EngineDiedError("SIGKILL", "")
        >>> print(error)
        the model's process died: SIGKILL; the next call starts another; ...
    """

    def __init__(self, cause: str, stderr: str) -> None:
        lines = stderr.strip().splitlines()
        super().__init__(
            f"the model's process died: {cause}{f': {lines[-1].strip()}' if lines else ''}",
            remedy="the next call starts another; if it dies again, the file, the driver or too little memory is the "
            "cause",
        )
        self.cause = cause
        self.stderr = stderr


class RemoteError(EngineError):
    """A server that runs a model elsewhere failed: ``url`` is its address, ``status`` what it said, as HTTP numbers it.

    ``status`` is None where it said nothing: it can't be reached, or the connection broke.

    Examples:
        >>> edge_llama.open("http://127.0.0.1:9/v1", tokenizer="smollm2")
        Traceback (most recent call last):
        edge_llama.errors.RemoteError: http://127.0.0.1:9...
    """

    def __init__(self, url: str, problem: str, *, status: int | None = None, remedy: str = "") -> None:
        super().__init__(f"{url}: {problem}", remedy=remedy)
        self.url = url
        self.status = status


class FidelityError(EdgeLlamaError):
    """A converted model is not what its checkpoint is, or further from it than was allowed.

    ``faults`` says of each thing that is wrong where it is and what was found: ``layer 3: ...``, ``tokenizer: ...``.

    Examples:
        >>> error = edge_llama.FidelityError("small.gguf", ["RoPE: its frequencies are off", "head: is missing"])
        >>> print(error)
        small.gguf: is not what its checkpoint is: RoPE: its frequencies are off; and 1 more
        >>> error.exit_code
        1
    """

    def __init__(self, where: str, faults: Iterable[str], *, remedy: str = "") -> None:
        self.faults = tuple(faults)
        more = f"; and {len(self.faults) - 1:,} more" if len(self.faults) > 1 else ""
        super().__init__(f"{where}: is not what its checkpoint is: {self.faults[0]}{more}", remedy=remedy)


class NotVerifiableError(EdgeLlamaError):
    """A model file is sound in structure but carries no hashes to verify its contents.

    Examples:
        ``edge-llama verify`` ends with it, as with a file of another program that carries no hashes.

        >>> issubclass(edge_llama.NotVerifiableError, edge_llama.InputError)  # so its exit code is 1
        False
    """


class InputError(EdgeLlamaError, ValueError):
    """What the caller gave can't be used.

    Examples:
        >>> model.chat().send("What is in this picture?", images=["docs/digits.png"])
        Traceback (most recent call last):
        edge_llama.errors.InputError: ...: the model sees no images: it has no vision tower; open a model ...
    """

    exit_code = 2


class OptionError(InputError):
    """An argument or option is outside its range.

    Examples:
        >>> model.generate("Once", temperature=-1)
        Traceback (most recent call last):
        edge_llama.errors.OptionError: temperature is -1, expected ...
    """


class UnknownOptionError(OptionError, TypeError):
    """There is no such option: ``name``; the message names the nearest that there is. Also Python's TypeError.

    Examples:
        >>> model.generate("Once", temprature=0)
        Traceback (most recent call last):
        edge_llama.errors.UnknownOptionError: generate has no option 'temprature'; did you mean temperature?
    """

    def __init__(self, name: str, where: str, known: Iterable[str]) -> None:
        from difflib import get_close_matches  # noqa: PLC0415 - for those who mistype

        names = sorted(known)
        near = get_close_matches(name, names, n=1)
        super().__init__(
            f"{where} has no option {name!r:.100}",
            remedy=f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}",
        )
        self.name = name


def check_known(options: Iterable[str], known: Collection[str], where: str, besides: Iterable[str] = ()) -> None:
    """UnknownOptionError for a name in ``options`` that ``where`` does not know; the first of several, by their names.

    ``besides``: what ``where`` takes by parameters of its own, which may be meant.
    """
    if unknown := sorted(name for name in options if name not in known):
        raise UnknownOptionError(unknown[0], where, {*known, *besides})


class CopyError(InputError, TypeError):
    """A Model, Chat or Generation was pickled or copied, which hold a process's memory and threads.

    Also the TypeError that Python raises for what can't be pickled.

    Examples:
        >>> import copy
        >>> copy.deepcopy(model)
        Traceback (most recent call last):
        edge_llama.errors.CopyError: ... a Model can't be pickled or copied; ...
    """


class CheckpointError(InputError):
    """A source checkpoint can't be converted.

    Examples:
        >>> from edge_llama.convert import convert
        >>> convert("docs", "docs.gguf")
        Traceback (most recent call last):
        edge_llama.errors.CheckpointError: docs: ...
    """


class ArtifactError(InputError):
    """A model file can't be opened.

    Examples:
        >>> edge_llama.open("docs/README.md")
        Traceback (most recent call last):
        edge_llama.errors.ArtifactError: docs/README.md: ...
    """


class OutputError(InputError):
    """An output can't be written.

    Examples:
        >>> model.chat().save("no/such/folder/chat.session")
        Traceback (most recent call last):
        edge_llama.errors.OutputError: no/such/folder/chat.session: ...
    """


class SessionError(InputError):
    """A session file can't be used: damaged, of another model, of a newer version, or no session at all.

    Examples:
        >>> model.load_chat("docs/README.md")
        Traceback (most recent call last):
        edge_llama.errors.SessionError: docs/README.md: ...
    """


class DocumentError(InputError):
    """A document's text can't be had: it is damaged, encrypted, too large, of another kind, or has no text.

    Examples:
        >>> edge_llama.Document.open("docs/digits.png")
        Traceback (most recent call last):
        edge_llama.errors.DocumentError: docs/digits.png: ...
    """


class HistoryError(InputError):
    """The history can't be used (locked, of a newer version, no folder for it), or has no such conversation.

    Examples:
        ``edge-llama history show ID`` ends with it for a conversation that is not there.

        >>> issubclass(edge_llama.HistoryError, edge_llama.InputError)  # so its exit code is 2
        True
    """


class TemplateError(InputError):
    """A chat template is missing, broken or unsafe.

    Examples:
        >>> with edge_llama.open(chat_template="{% for message in %}") as broken:
        ...     broken.chat()
        Traceback (most recent call last):
        edge_llama.errors.TemplateError: ...
    """


class ContextFullError(InputError):
    """A prompt does not fit: ``needed`` tokens where the context holds ``n_ctx``.

    ``is_bound`` says that it needs at least so many: the text is so long that they were not counted. ``text`` names
    what is no prompt but a text to embed, which no answer follows; or, with ``room``, files that go into a prompt
    which leaves them so many tokens. ``maximum`` is what would have fitted.

    Examples:
        >>> try:
        ...     model.generate("word " * 10_000)
        ... except edge_llama.ContextFullError as error:
        ...     print(error.needed > error.n_ctx, error.maximum == model.n_ctx - 1)
        True True
    """

    def __init__(
        self,
        needed: int,
        n_ctx: int,
        *,
        is_bound: bool = False,
        remedy: str = "",
        text: str = "",
        room: int | None = None,
    ) -> None:
        count = f"at least {needed:,}" if is_bound else f"{needed:,}"
        kept = "" if text else " (one is kept for the answer)"
        held = f"the context holds {n_ctx:,}{kept}"
        if room is not None:
            held = f"the context of {n_ctx:,} has room for {room:,}"
        super().__init__(
            f"{text or 'the prompt'} needs {count} tokens but {held}",
            remedy=remedy or "shorten it, start anew, or open the model with a larger n_ctx (--n-ctx)",
        )
        self.needed = needed
        self.n_ctx = n_ctx
        self.room = room
        self.maximum = room if room is not None else n_ctx if text else n_ctx - 1
        self.is_bound = is_bound


def error_to_json(error: BaseException) -> dict[str, Any]:
    """An error; one that is none of ours as what the engine's failed work raises."""
    if not isinstance(error, EdgeLlamaError):
        error = EngineError(f"the work in the model's process failed: {type(error).__name__}: {error}")
    scalars = bool | int | float | str | None
    plain = {name: value for name, value in vars(error).items() if isinstance(value, scalars)}
    return {"type": type(error).__name__, **plain}


def error_from_json(data: Mapping[str, Any]) -> EdgeLlamaError:
    """The inverse of :func:`error_to_json`: of the same type, with the same fields."""
    kinds = {kind.__name__: kind for kind in _kinds(EdgeLlamaError)}
    kind = kinds.get(data["type"], EngineError)
    error = kind.__new__(kind, data["message"])
    vars(error).update({name: value for name, value in data.items() if name != "type"})
    return error


def _kinds(kind: type[EdgeLlamaError]) -> Iterator[type[EdgeLlamaError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == __name__:
            yield from _kinds(below)
