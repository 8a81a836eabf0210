"""``python -m quant.compiled [--importance] q4_k groups``: compile kernels; they lie ready for other processes."""

import sys

from quant.compiled import GROUPS, load, load_groups, load_rows

if __name__ == "__main__":
    load_rows()
    has_importance = "--importance" in sys.argv
    for name in sys.argv[1 + has_importance :]:
        load_groups() if name == GROUPS else load(name, has_importance=has_importance)
