"""How does the plot of docs/scaling.md come about?"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from scaling_model import A100, H100, MOSAIC, Job, result

DEVICES = [2**n for n in range(11)]
SPEEDS = (100, 1_000, 10_000, 100_000)
GREY = "#8a8f98"  # readable on white and on black
COLOURS = {H100: "#2f7ed8", A100: "#d9822b"}


def plot(path: Path) -> None:
    """Images a second by number of GPUs, at 256 and 512 px, with what others measured."""
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "scaling", "text.color": GREY})
    figure, both = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axes, size in zip(both, (256, 512), strict=True):
        for gpu, colour in COLOURS.items():
            name = "H100" if gpu == H100 else "A100"
            for batch, style in ((2048, "-"), (65_536, "--")):
                speeds = [result(Job(size, n, batch, gpu)).images_per_s for n in DEVICES]
                axes.plot(DEVICES, speeds, style, color=colour, label=f"{name}, batch {batch:,}")
        measured = [pair[size == 512] for pair in MOSAIC.values()]
        axes.plot(list(MOSAIC), measured, "o", color=GREY, label="SD 2 on A100, published")
        _dress(axes, f"{size} px")
    both[0].set_ylabel("images/s", color=GREY)
    both[0].legend(frameon=False, labelcolor=GREY)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def _dress(axes: plt.Axes, title: str) -> None:
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xlabel("GPUs", color=GREY)
    axes.set_xticks([1, 8, 64, 256, 1024], ["1", "8", "64", "256", "1,024"])
    axes.set_yticks(SPEEDS, [f"{speed:,}" for speed in SPEEDS])
    axes.minorticks_off()
    axes.tick_params(colors=GREY)
    axes.grid(alpha=0.25)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
