"""How are series of numbers drawn as lines, bands and points?

Places are shares of the plot's area, so that it is as wide as the screen while text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ldm.page.axes import Axis
from ldm.page.embed import Embedded
from ldm.page.numbers import shown
from ldm.page.templates import render

COLOURS = 8
MAX_POINTS = 160  # of a series that can be pointed at; its line has all
FEW = 40  # up to here points are marked


@dataclass(frozen=True)
class Series:
    """A named curve. low, high: an interval for each point, drawn as a band (points: as bars).

    Values that are not finite make a gap. line: False for points alone. labels: what each point
    is called when pointed at.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    line: bool = True
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"series {self.name!r} has one of low and high; give both or none")
        parts = {"xs": self.xs, "ys": self.ys, "low": self.low, "high": self.high}
        parts["labels"] = self.labels  # type: ignore[assignment]
        lengths = {name: len(part) for name, part in parts.items() if part is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"series {self.name!r} has {lengths}; give as many of each")


@dataclass(frozen=True)
class Plot:
    """Curves over common axes. What an axis cannot show (NaN, log of 0) is left out, counted."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False

    def html(self, embedded: Embedded) -> Markup:
        x = Axis.over((v for s in self.series for v in s.xs), log=self.log_x, margin=0.02)
        heights = (v for s in self.series for part in (s.ys, s.low, s.high) for v in part or ())
        y = Axis.over(heights, log=self.log_y, margin=0.06)
        drawn = [_Drawn.of(one, x, y, i % COLOURS + 1) for i, one in enumerate(self.series)]
        left_out = sum(one.left_out for one in drawn)
        return render(
            "plot",
            {
                "plot": self,
                "drawn": drawn,
                "left_out": left_out,
                "empty": not any(one.points for one in drawn),
                "x_ticks": [(_percent(at), text) for at, text in x.ticks()],
                "y_ticks": [(_percent(1 - at), text) for at, text in y.ticks()],
            },
        )


@dataclass(frozen=True)
class _Point:
    """In percent of the area; low and high are the ends of its bar."""

    x: str
    y: str
    text: str
    low: str | None
    high: str | None


@dataclass(frozen=True)
class _Drawn:
    """A series as the template needs it; paths are in thousandths of the area."""

    name: str
    colour: int
    line: str
    band: str
    points: list[_Point]
    dense: bool
    left_out: int

    @classmethod
    def of(cls, series: Series, x: Axis, y: Axis, colour: int) -> _Drawn:
        rows = list(zip(series.xs, series.ys, strict=True))
        good = [i for i, (a, b) in enumerate(rows) if x.shows(a) and y.shows(b)]
        runs = _runs(good)
        stride = max(1, math.ceil(len(good) / MAX_POINTS))
        alone = {run[0] for run in runs if len(run) == 1}
        bars = not series.line or len(alone) == len(good)
        return cls(
            name=series.name,
            colour=colour,
            line=" ".join(_line(series, run, x, y) for run in runs) if series.line else "",
            band="" if bars else " ".join(_band(series, run, x, y) for run in runs),
            points=[_point(series, i, x, y, bars) for i in good[::stride]],
            dense=len(good) > FEW and series.line,
            left_out=len(rows) - len(good),
        )


def _runs(indices: Sequence[int]) -> list[list[int]]:
    """Neighbours together: [0, 1, 4] -> [[0, 1], [4]]."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _line(series: Series, run: Sequence[int], x: Axis, y: Axis) -> str:
    return "M" + "L".join(_at(x.place(series.xs[i]), y.place(series.ys[i])) for i in run)


def _band(series: Series, run: Sequence[int], x: Axis, y: Axis) -> str:
    if series.low is None or series.high is None:
        return ""
    upper, lower = [], []
    for i in run:
        at = x.place(series.xs[i])
        upper.append(_at(at, _end(y, series.high[i], series.ys[i])))
        lower.append(_at(at, _end(y, series.low[i], series.ys[i])))
    return "M" + "L".join(upper + lower[::-1]) + "Z"


def _end(y: Axis, value: float, middle: float) -> float:
    """Where an interval ends; at the value itself where there is no end to be shown."""
    return y.place(value if y.shows(value) else middle)


def _point(series: Series, i: int, x: Axis, y: Axis, bars: bool) -> _Point:
    ends: list[str | None] = [None, None]
    interval = ""
    if series.low is not None and series.high is not None:
        low, high = series.low[i], series.high[i]
        interval = f" [{shown(float(low))}, {shown(float(high))}]"
        if bars:
            ends = [_percent(1 - _end(y, end, series.ys[i])) for end in (low, high)]
    label = series.labels[i] if series.labels is not None else series.name
    text = f"{label}: {shown(float(series.ys[i]))}{interval} at {shown(float(series.xs[i]))}"
    return _Point(
        x=_percent(x.place(series.xs[i])),
        y=_percent(1 - y.place(series.ys[i])),
        text=text,
        low=ends[0],
        high=ends[1],
    )


def _at(x: float, y: float) -> str:
    return f"{1000 * x:.1f} {1000 * (1 - y):.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
