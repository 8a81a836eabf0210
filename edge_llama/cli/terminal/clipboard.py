"""The clipboard of whoever sits at the terminal, also at the other end of ssh."""

import base64
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from edge_llama.errors import OptionError
from edge_llama.host.child import environment_of_others

_SECONDS = 5
"""A clipboard's program that takes longer waits for a display that does not answer."""


@dataclass(frozen=True, slots=True)
class _Tool:
    """A program that puts its stdin into the clipboard, and the variable that says that there is one."""

    command: tuple[str, ...]
    variable: str = ""
    system: str = ""
    encoding: str = "utf-8"

    @property
    def is_here(self) -> bool:
        is_meant = bool(os.environ.get(self.variable)) if self.variable else sys.platform == self.system
        return is_meant and shutil.which(self.command[0]) is not None


_TOOLS = (
    _Tool(("pbcopy",), system="darwin"),
    _Tool(("clip",), system="win32", encoding="utf-16"),
    _Tool(("clip.exe",), variable="WSL_DISTRO_NAME", encoding="utf-16"),
    _Tool(("termux-clipboard-set",), variable="TERMUX_VERSION"),
    _Tool(("wl-copy",), variable="WAYLAND_DISPLAY"),
    _Tool(("xclip", "-selection", "clipboard"), variable="DISPLAY"),
    _Tool(("xsel", "--clipboard", "--input"), variable="DISPLAY"),
)


def copy(text: str) -> str:
    """Put ``text`` there; where it went, for people. OptionError if there is no terminal.

    By the system's own program where one is here, which works in every terminal; through ssh, and without, by the
    terminal itself (OSC 52), which can't tell whether it did.
    """
    is_far = bool(os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY"))
    for tool in () if is_far else _TOOLS:
        if tool.is_here and _took([*tool.command], text.encode(tool.encoding)):
            return f"the clipboard ({tool.command[0]})"
    # tmux takes no OSC 52 from programs by default, but gives what is in its buffer to the terminal by it.
    if os.environ.get("TMUX") and _took(["tmux", "load-buffer", "-w", "-"], text.encode()):
        return "tmux's buffer, and the terminal's clipboard if it takes OSC 52"
    if not sys.stdout.isatty():
        raise OptionError("there is no terminal whose clipboard could be used")
    sys.stdout.write(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
    sys.stdout.flush()
    return "the terminal's clipboard, if it takes OSC 52 (most do; some must be told to)"


def _took(command: list[str], data: bytes) -> bool:
    """Whether the program took it. Its output is no pipe, which xclip and wl-copy would keep open in the background."""
    nowhere = subprocess.DEVNULL
    try:
        done = subprocess.run(  # noqa: S603
            command,
            input=data,
            stdout=nowhere,
            stderr=nowhere,
            check=False,
            timeout=_SECONDS,
            env=environment_of_others(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
