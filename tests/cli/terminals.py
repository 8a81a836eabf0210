"""A terminal for tests: ``edge-llama`` in a real pseudo-terminal, its output drawn on an emulated screen."""

import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pexpect
import pyte

EDGE_LLAMA = str(Path(sys.executable).with_name("edge-llama"))
ROWS = 200  # so tall that nothing scrolls away


class Terminal:
    """What a person sees after the last line that they typed is :meth:`text`."""

    def __init__(self, command: str, arguments: Sequence[object], env: Mapping[str, str], columns: int = 100) -> None:
        self._screen = pyte.Screen(columns, ROWS)
        self._stream = pyte.Stream(self._screen)
        self._child = pexpect.spawn(
            command,
            [str(argument) for argument in arguments],
            env={**env, "TERM": "xterm"},
            dimensions=(ROWS, columns),
            encoding="utf-8",
        )
        self._screen.write_process_input = self._child.send  # the cursor's position, when the program asks for it
        self._typed_at = 0

    def text(self) -> str:
        """The lines below the last typed one, without blanks at their ends."""
        return "\n".join(line.rstrip() for line in self._screen.display[self._typed_at :]).strip("\n")

    def see(self, pattern: str, timeout: float = 60) -> str:
        """Wait until the text matches; the text."""
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.text()):
            assert time.monotonic() < deadline, f"{pattern!r} did not appear on the screen:\n{self.text()}"
            self._draw()
        return self.text()

    def type(self, keys: str) -> None:
        """Press keys, without Enter."""
        self._child.send(keys)

    def ask(self, line: str) -> str:
        """Type a line, wait for the next prompt; what came between."""
        self.enter(line)
        return self.see(r"(?m)^>\Z")

    def enter(self, line: str = "") -> None:
        """Type a line and Enter, when the program has drawn its prompt: meanwhile its cursor goes up and down."""
        before = None
        for _ in range(20):
            if before == (before := (self._screen.cursor.y, tuple(self._screen.display))):
                break
            self._draw()
        self._typed_at = self._screen.cursor.y + 1
        self._child.send(line + "\r")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._child.sendintr()

    def signal(self, number: int) -> None:
        """Send the program a signal."""
        self._child.kill(number)

    def hang_up(self) -> int:
        """Close the terminal under the program; wait for its end, its exit code, or minus the signal it died of."""
        self._child.ptyproc.fileobj.close()
        code = self._child.ptyproc.wait()
        return -int(self._child.ptyproc.signalstatus) if code is None else int(code)

    def exit_code(self) -> int | None:
        """Wait for the program's end."""
        while self._draw():
            pass
        self._child.close()
        return self._child.exitstatus

    def close(self) -> None:
        self._child.kill(signal.SIGKILL)
        self._child.close()

    def _draw(self) -> bool:
        """Take what the program wrote; False when it has ended."""
        try:
            self._stream.feed(self._child.read_nonblocking(65536, timeout=0.1))
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        return True
