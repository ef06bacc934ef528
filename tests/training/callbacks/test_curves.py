"""Do the curves show the rows of metrics.csv?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image

from ldm.training.callbacks.curves import plot  # the real one: runs of the tests draw nothing

ROWS = """samples_seen,train/loss,lr,images_per_s,val/loss_raw,val/loss/t3_ema
0,,,,1.5,1.25
8,1.0,0.1,20,,
16,0.5,0.2,30,0.75,0.625
"""


def test_every_curve_has_its_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    original = Axes.plot

    def watched(self: Axes, x: object, y: object, **options: str) -> object:
        drawn[options["label"]] = (list(x), list(y))  # type: ignore[call-overload]
        return original(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", watched)
    (tmp_path / "metrics.csv").write_text(ROWS)
    plot(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert drawn == {
        "train/loss": ([8, 16], [1.0, 0.5]),
        "val/loss_raw": ([0, 16], [1.5, 0.75]),
        "0.3": ([0, 16], [1.25, 0.625]),
        "learning rate": ([8, 16], [0.1, 0.2]),
        "images/s": ([8, 16], [20, 30]),
    }
    assert Image.open(tmp_path / "curves.png").width > 500


def test_they_come_with_a_checkpoint_but_it_does_not_need_them(
    tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    """A checkpoint before the first row of numbers is written without curves."""
    run_dir = tiny_run(tmp_path / "a", "training.save_every=8", "training.log_every=32")
    assert (run_dir / "curves.png").exists()
    assert len(list((run_dir / "checkpoints").glob("s*.ckpt"))) == 2
