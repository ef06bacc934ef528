"""Is the peak that is counted the one that a step has?"""

from __future__ import annotations

import pytest
import torch

KIB = 1024


def test_above_the_end() -> None:
    from peak_memory import above_the_end

    assert above_the_end([4, 3, -3, -4]) == 7
    assert above_the_end([4, -1]) == 1
    assert above_the_end([-5, 2]) == 3  # the beginning was the highest
    assert above_the_end([]) == 0


def test_a_step_that_frees_what_the_last_one_made() -> None:
    """Kept: 256 KiB; made in a step and freed in the next: 512; for a while: 1,024."""
    from peak_memory import Peak, live_bytes

    around = live_bytes()
    kept = torch.zeros(256, KIB, dtype=torch.uint8)
    last = torch.zeros(512, KIB, dtype=torch.uint8)
    peak = Peak("cpu")
    peak.start()
    for _ in range(2):
        passing = torch.zeros(1024, KIB, dtype=torch.uint8)
        del passing, last
        last = torch.zeros(512, KIB, dtype=torch.uint8)
    found = peak.mib() - around / 2**20
    assert kept.numel() + last.numel() == 768 * KIB
    assert found == pytest.approx((256 + 512 + 1024) / KIB, abs=0.05)


def test_live_bytes_counts_a_storage_once_and_gradients() -> None:
    from peak_memory import live_bytes

    before = live_bytes()
    weight = torch.zeros(1000, 1000, requires_grad=True)
    view = weight.detach()[10:]
    assert live_bytes() - before == pytest.approx(4_000_000, abs=10_000)
    (weight.sum()).backward()
    assert live_bytes() - before == pytest.approx(8_000_000, abs=10_000)
    assert view.numel() == 990_000
