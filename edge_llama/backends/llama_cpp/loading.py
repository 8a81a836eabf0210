"""llama.cpp's own word of how far loading is, passed on: see :mod:`edge_llama.backends.load_progress`."""

from typing import Any

from edge_llama.backends import load_progress


class Loading:
    """Around one ``llama_model_load_from_file``, which ends where the listener raises something."""

    def __init__(self, lib: Any, options: Any) -> None:
        """Have ``options`` tell who listens, if anybody does; this must live as long as the call."""
        self._listener = load_progress.listener()
        self._error: BaseException | None = None
        if self._listener:
            self._callback = options.progress_callback = lib.llama_progress_callback(self._tell)

    def _tell(self, fraction: float, _data: int | None) -> bool:
        assert self._listener  # noqa: S101 - else it is not called
        try:
            self._listener(min(fraction, 1.0))
        except BaseException as error:  # it can't cross native code
            self._error = error
        return self._error is None

    def check(self) -> None:
        """Raise what the listener raised."""
        if self._error:
            raise self._error
