"""The command line: every file is a verb, found by its name."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("edge_llama.cli")
