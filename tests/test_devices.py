"""How many threads an answer gets."""

import pytest

from edge_llama import devices


@pytest.mark.parametrize(
    ("samples", "threads"),
    [([1], 4), ([3, 3, 2, 1], 4), ([5, 2, 2, 2], 3), ([4, 3, 4, 5, 1], 2), ([9, 9, 9, 9], 1), ([0], 4)],
)
def test_only_what_keeps_running_counts_as_busy(
    monkeypatch: pytest.MonkeyPatch, samples: list[int], threads: int
) -> None:
    """Our own threads are still about to sleep when the next answer begins."""
    runnable = iter(samples)
    monkeypatch.setattr(devices, "_runnable", lambda: next(runnable))
    monkeypatch.setattr(devices, "cpu_threads", lambda: 4)
    assert devices.free_threads() == threads
