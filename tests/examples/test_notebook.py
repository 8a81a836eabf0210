"""examples/notebook.py runs whole, and its plots show something."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image


def test_it_runs_from_the_first_cell_to_the_last(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("notebook.py", tmp_path / "plots")
    assert "The capital of Japan is Tokyo." in printed
    assert "left 5, right 4" in printed
    for name in ("logprobs.png", "cosines.png", "digits.png"):
        with Image.open(tmp_path / "plots" / name) as plot:
            assert len(plot.convert("RGB").getcolors(1 << 24) or ()) > 50, f"{name} is empty"
