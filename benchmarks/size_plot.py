"""How does the plot of cost against size come about?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from scaling_plot import GREY
from size import AXES, SHARDS, line

COLOURS = ("#2f7ed8", "#d9822b", "#2a9d5c")


def plot(report: dict[str, Any], path: Path) -> None:
    """A panel a sweep: the medians with their quartiles, and the straight line through them."""
    sweeps = [sweep for sweep in AXES if any(row["sweep"] == sweep for row in report["rows"])]
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "size", "text.color": GREY})
    figure, panels = plt.subplots(1, len(sweeps), figsize=(3.2 * len(sweeps), 3), squeeze=False)
    for axes, sweep in zip(panels[0], sweeps, strict=True):
        for colour, what in zip(COLOURS, SHARDS if sweep == "shards" else ("step",), strict=False):
            rows = [r for r in report["rows"] if (r["sweep"], r["what"]) == (sweep, what)]
            _curve(axes, rows, colour, what)
        if sweep == "shards":
            axes.set(xscale="log", yscale="log")
            axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
        else:
            axes.set(xlim=(0, None), ylim=(0, None))
        axes.set_xlabel(AXES[sweep], color=GREY)
        axes.tick_params(colors=GREY)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GREY)
    panels[0][0].set_ylabel("ms", color=GREY)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def _curve(axes: plt.Axes, rows: list[dict[str, Any]], colour: str, what: str) -> None:
    xs, ys = [r["x"] for r in rows], [r["median_ms"] for r in rows]
    spread = [
        [y - r["quartiles_ms"][0], r["quartiles_ms"][1] - y] for y, r in zip(ys, rows, strict=True)
    ]
    axes.errorbar(xs, ys, list(zip(*spread, strict=True)), fmt="o", ms=4, color=colour, label=what)
    if rows[0]["line"] is not None:
        base, slope = line(xs, ys)
        axes.plot(xs, [base + slope * x for x in xs], "-", lw=1, color=colour)
