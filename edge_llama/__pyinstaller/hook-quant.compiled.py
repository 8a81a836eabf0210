"""Kernels that numba compiles. What it compiled is kept by the sources, which so must lie there as files."""

from PyInstaller.utils.hooks import copy_metadata

module_collection_mode = "py"
try:
    datas = copy_metadata("numba")
except Exception:  # it is not installed, and ggml's kernels do the work
    datas = []
