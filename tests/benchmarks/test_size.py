"""Do the sweeps of benchmarks/size.py measure what they say, and does a curve stand out?"""

from __future__ import annotations

from pathlib import Path

import pytest


def test_a_line_is_found_and_a_curve_stands_out() -> None:
    from size import fitted, line

    assert line([1, 2, 4], [3.0, 5.0, 9.0]) == pytest.approx((1.0, 2.0))
    straight = {x: [1e-3 * (7 + 3 * x)] * 4 for x in (8, 16, 32, 64, 128)}
    assert [row.line for row in fitted("batch", "step", straight)] == pytest.approx([1.0] * 5)
    squared = {x: [1e-3 * x**2] * 4 for x in straight}
    assert max(abs((row.line or 0) - 1) for row in fitted("batch", "step", squared)) > 0.2


@pytest.mark.parametrize(
    ("sweep", "x", "latents", "text"),
    [
        ("batch", 4, (4, 4, 8, 8), 8),
        ("tokens", 20, (32, 4, 8, 8), 20),
        ("positions", 144, (8, 4, 12, 12), 8),
    ],
)
def test_a_step_has_the_size_that_it_is_asked_for(
    sweep: str, x: int, latents: tuple[int, ...], text: int
) -> None:
    import torch
    from size import step_of

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            seen.append((tuple(x.shape), len(t), context.shape[1]))
            return self.scale * x

    seen: list[tuple[tuple[int, ...], int, int]] = []
    network = Network()
    step = step_of(sweep, x, network, torch.optim.SGD(network.parameters(), lr=0.1), "cpu")
    assert step() > 0
    assert seen == [(latents, latents[0], text)]
    assert network.scale != 1  # it is trained


def test_reading_shards(tmp_path: Path) -> None:
    from size import read_shards, tables, write_shards

    write_shards(tmp_path / "shards", 3)
    assert len(list((tmp_path / "shards").iterdir())) == 3
    assert all(seconds > 0 for seconds in read_shards(tmp_path / "shards", tmp_path / "cache"))
    row = {"sweep": "shards", "what": "index, again", "x": 10, "median_ms": 1.5, "line": 1.04}
    (table,) = tables({"rows": [row]}).values()
    assert table.rows == [("10", "1.50 (1.04 of the line)")]


def test_the_plot(tmp_path: Path) -> None:
    from size import SHARDS
    from size_plot import plot

    rows = [
        {
            "sweep": sweep,
            "what": what,
            "x": x,
            "median_ms": 2.0 * x,
            "quartiles_ms": (1.9 * x, 2.1 * x),
            "line": None if what == SHARDS[2] else 1.0,
        }
        for sweep, whats in (("batch", ("step",)), ("shards", SHARDS))
        for what in whats
        for x in (8, 16)
    ]
    plot({"rows": rows}, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
