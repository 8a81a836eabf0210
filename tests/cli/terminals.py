"""A terminal for tests: ``edge-llama`` in a real pseudo-terminal, its output drawn on an emulated screen."""

import base64
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
            env=dict(env),
            dimensions=(ROWS, columns),
            encoding="utf-8",
        )
        self._screen.write_process_input = self._child.send  # the cursor's position, when the program asks for it
        self._typed_at = 0
        self.written = ""
        """All that the program wrote, escapes included."""

    def text(self) -> str:
        """The lines below the last typed one, without blanks at their ends."""
        return "\n".join(line.rstrip() for line in self._screen.display[self._typed_at :]).strip("\n")

    def see(self, pattern: str, timeout: float = 60) -> str:
        """Wait until the text matches; the text."""
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.text()):
            assert time.monotonic() < deadline, f"{pattern!r} did not appear; written last:\n{self.written[-2000:]!r}"
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
        """Type a line and Enter."""
        self._settle()
        self._typed_at = self._screen.cursor.y + 1
        self._child.send(line + "\r")

    def resize(self, columns: int) -> None:
        """Change the window's width, as a person drags it: the program gets SIGWINCH."""
        self._child.setwinsize(ROWS, columns)
        self._screen.resize(ROWS, columns)

    def wait(self) -> None:
        """Take what the program writes in a tenth of a second."""
        self._draw()

    def copied(self) -> str:
        """What the program last put into the clipboard."""
        return base64.b64decode(re.findall(r"\x1b\]52;c;([^\x07]*)\x07", self.written)[-1]).decode()

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

    def exit_code(self, *, keep: bool = False) -> int | None:
        """Wait for the program's end; ``keep`` the terminal open."""
        while self._draw():
            pass
        if keep:
            self._child.wait()
        else:
            self._child.close()
        return self._child.exitstatus

    def is_cooked(self) -> bool:
        """Whether the terminal echoes what is typed, and gives it line by line, as shells expect it."""
        import termios  # noqa: PLC0415 - POSIX's, as pseudo-terminals are

        wanted = termios.ECHO | termios.ICANON | termios.ISIG
        return termios.tcgetattr(self._child.child_fd)[3] & wanted == wanted

    def close(self) -> None:
        self._child.kill(signal.SIGKILL)
        self._child.close()

    def _settle(self) -> None:
        """Draw until nothing comes for a tenth of a second: amid a prompt's drawing the cursor is not on its line."""
        drawn = -1
        while drawn != len(self.written):
            drawn = len(self.written)
            self._draw()

    def _draw(self) -> bool:
        """Take what the program wrote; False when it has ended."""
        try:
            written = self._child.read_nonblocking(65536, timeout=0.1)
            self.written += written
            self._stream.feed(written)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        return True
