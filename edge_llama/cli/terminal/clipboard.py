"""The clipboard of whoever sits at the terminal, also at the other end of ssh."""

import base64
import os
import shutil
import subprocess
import sys

from edge_llama.errors import OptionError
from edge_llama.host.child import environment_of_others


def copy(text: str) -> str:
    """Put ``text`` there; where it went, for people. OptionError if there is no terminal."""
    if os.environ.get("TMUX") and (tmux := shutil.which("tmux")):
        # tmux takes no OSC 52 from programs by default, but gives what is in its buffer to the terminal by it.
        done = subprocess.run(  # noqa: S603
            [tmux, "load-buffer", "-w", "-"],
            input=text.encode(),
            capture_output=True,
            check=False,
            env=environment_of_others(),
        )
        if done.returncode == 0:
            return "tmux's buffer, and the terminal's clipboard if it takes OSC 52"
    if not sys.stdout.isatty():
        raise OptionError("there is no terminal whose clipboard could be used")
    sys.stdout.write(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
    sys.stdout.flush()
    return "the terminal's clipboard, if it takes OSC 52 (most do; some must be told to)"
