"""Pictures of what the benchmarks left in ``results/``, for the docs.

.venv/bin/pip install matplotlib && .venv/bin/python benchmarks/charts.py
"""

import json

import matplotlib as mpl
from peers import ROOT

mpl.use("svg")
from matplotlib import pyplot as plt

LABELS = {
    "llama.cpp": "llama.cpp: convert_hf_to_gguf.py, then its quantizer",
    "edge-llama": "edge-llama convert",
    "disk": "reading and writing as many bytes, nothing else",
}


def main() -> None:
    rows = json.loads((ROOT / "benchmarks/results/conversion_sizes.json").read_text())
    mpl.rcParams["svg.hashsalt"] = "edge-llama"  # the same picture from the same figures
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    gigabytes = [row["bytes"] / 1e9 for row in rows]
    for name, label in LABELS.items():
        axes.plot(gigabytes, [row[name] for row in rows], "o-", label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="checkpoint, GB of bf16", ylabel="seconds", title="To Q4_K_M, 2 threads"
    )
    axes.set_xticks(gigabytes, [f"{size:.2g}" for size in gigabytes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(ROOT / "docs/conversion_sizes.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
