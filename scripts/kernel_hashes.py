"""Print ``_HASHES`` of ``quant/reference/vectors.py``, as the installed llama-cpp-python has them.

.venv/bin/python scripts/kernel_hashes.py

To be run on x86-64, where no compiler fuses products and sums unasked, and only when ggml's bytes are meant to change:
a format that is new, or another algorithm of llama.cpp's.
"""

from edge_llama.files.formats import FORMATS
from quant import compiled
from quant.reference import ggml
from quant.reference.vectors import hashed

if __name__ == "__main__":
    print("_HASHES = {")
    for name in compiled.NAMES:
        for has_importance in (False, True):
            found = hashed(lambda rows, importance: ggml.quantize(rows, FORMATS[name], importance), has_importance)  # noqa: B023
            print(f'    ("{name}", {has_importance}): "{found}",')
    print("}")
