"""``python -m quant.compiled [--importance] q4_k groups``: compile kernels; they lie ready for other processes."""

import sys

from quant.compiled import GROUPS, load, load_groups, load_rows


def main(*arguments: str) -> None:
    """Compile what ``arguments`` name: formats, or groups; a child of :mod:`quant.loading` too."""
    has_importance = "--importance" in arguments
    load_rows()
    for name in arguments[has_importance:]:
        load_groups() if name == GROUPS else load(name, has_importance=has_importance)


if __name__ == "__main__":
    main(*sys.argv[1:])
