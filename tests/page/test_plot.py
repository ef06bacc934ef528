"""Do lines go where the numbers are?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from ldm.page import Plot, Series
from ldm.page.embed import Embedded
from ldm.page.plot import MAX_POINTS


def html(*series: Series, **options: Any) -> str:
    plot = Plot(title="T", x_label="x", y_label="y", series=series, **options)
    return str(plot.html(Embedded()))


def numbers(path: str) -> list[list[float]]:
    return [[float(v) for v in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", path)]


def test_a_line_is_straight_where_its_numbers_are(parsed: Callable[[str], Any]) -> None:
    page = parsed(html(Series("a", [0, 1, 2], [10, 20, 30])))
    (line,) = [tag for tag in page.of_class("line") if "d" in tag]
    (x0, y0), (x1, y1), (x2, y2) = numbers(line["d"])
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x0 < x2
    assert y0 > y2  # more is higher up
    # points stand on the line: percent of the area against thousandths
    assert [float(c["cx"].rstrip("%")) * 10 for c in page.all("circle") if "cx" in c] == (
        pytest.approx([x0, x1, x2], abs=0.2)
    )


def test_a_band_goes_up_one_end_and_back_the_other(parsed: Callable[[str], Any]) -> None:
    page = parsed(html(Series("a", [0, 1], [2, 2], low=[1, 1], high=[3, 3])))
    (band,) = page.of_class("band")
    corners = numbers(band["d"])
    assert [x for x, _ in corners] == [corners[0][0], corners[1][0], corners[1][0], corners[0][0]]
    assert corners[0][1] == corners[1][1] < corners[2][1] == corners[3][1]


def test_points_alone_have_bars_instead(parsed: Callable[[str], Any]) -> None:
    page = parsed(html(Series("a", [0, 1], [2, 2], low=[1, 1], high=[3, 3], line=False)))
    assert not page.of_class("band")
    assert len(page.of_class("whisker")) == 2
    assert len(parsed(html(Series("a", [1], [2], [1], [3]))).of_class("whisker")) == 1


def test_a_gap_parts_the_line_and_is_counted(parsed: Callable[[str], Any]) -> None:
    page = parsed(html(Series("a", range(5), [1, 2, math.nan, 4, 5])))
    (line,) = [tag for tag in page.of_class("line") if "d" in tag]
    assert line["d"].count("M") == 2
    assert "1 value is not drawn" in page.texts["p"][-1]


def test_zero_is_left_out_of_a_logarithmic_axis() -> None:
    text = html(Series("a", [0, 1, 10], [0, 1, 2]), log_x=True, log_y=True)
    assert "1 value is not drawn: not finite, or 0 or less on a logarithmic axis." in text
    assert "not drawn" not in html(Series("a", [1, 10], [1, 2]), log_x=True)


def test_a_long_series_has_all_of_its_line_and_some_points(parsed: Callable[[str], Any]) -> None:
    page = parsed(html(Series("a", range(5000), [x / 9 for x in range(5000)])))
    (line,) = [tag for tag in page.of_class("line") if "d" in tag]
    assert len(numbers(line["d"])) == 5000
    assert 100 <= len(page.all("circle")) <= MAX_POINTS
    assert page.of_class("dense")


@pytest.mark.parametrize("series", [[], [Series("a", [], [])], [Series("a", [1], [math.nan])]])
def test_nothing_to_draw_is_said(series: list[Series]) -> None:
    assert "There is nothing to draw yet." in html(*series)


def test_names_are_text(parsed: Callable[[str], Any]) -> None:
    hostile = '"><script>alert(1)</script>'
    page = parsed(html(Series(hostile, [1, 2], [1, 2]), Series("b", [1], [1], labels=[hostile])))
    assert not page.all("script")
    assert any(hostile in circle.get("data-text", "") for circle in page.all("circle"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ys": [1]}, r"'xs': 2, 'ys': 1"),
        ({"low": [1, 2]}, "one of low and high"),
        ({"labels": ["a"]}, r"'labels': 1"),
    ],
)
def test_lengths_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Series("a", **{"xs": [1, 2], "ys": [1, 2], **options})
