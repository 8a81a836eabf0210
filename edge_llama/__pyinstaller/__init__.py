"""Hooks for PyInstaller, which finds them by the entry point ``pyinstaller40``: see docs/desktop.md.

A hook is for a package, and counts where the program imports that: a chat takes no converter along. ``rthooks.dat``
names what runs within a frozen program before its own first line: there child processes get their work.
"""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Folders with hooks."""
    return [str(Path(__file__).parent)]
