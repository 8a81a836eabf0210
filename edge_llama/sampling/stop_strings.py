"""Where text ends that the caller doesn't want to go on."""

from collections.abc import Iterable

from edge_llama.prompts.partial_tags import overlap


class StopStrings:
    """Finds stop strings in text that arrives in pieces, holding back what may be the beginning of one."""

    def __init__(self, stops: Iterable[str] | None) -> None:
        self._stops = tuple(stops or ())
        self._held = ""
        self.reached: str | None = None
        """The stop string that was found."""

    def feed(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was reached; it is not shown)."""
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self._stops if stop in text]
        if found:  # the one that is complete first, so that it does not matter how the text is cut
            self._held = ""
            _, start, self.reached = min(found)
            return text[:start], True
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held
