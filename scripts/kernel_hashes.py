"""Print ``_HASHES`` of ``quant/reference/vectors.py``, as the installed llama-cpp-python has them.

.venv/bin/python scripts/kernel_hashes.py

To be run on x86-64, where no compiler fuses products and sums unasked, and only when ggml's bytes are meant to change:
a format that is new, or another algorithm of llama.cpp's.
"""

from edge_llama.files.formats import FORMATS
from quant.recipe import WRITTEN
from quant.reference import ggml
from quant.reference.vectors import by_every_third, hashed

if __name__ == "__main__":
    print("_HASHES = {")
    for format_ in (FORMATS[name] for name in WRITTEN if FORMATS[name].is_quantized):
        for has_importance in (True,) if ggml.requires_importance(format_) else (False, True):
            found = hashed(
                lambda rows, importance: ggml.quantize(rows, format_, importance),  # noqa: B023 - called at once
                has_importance,
                every_third=by_every_third(format_),
            )
            print(f'    ("{format_}", {has_importance}): "{found}",')
    print("}")
