"""Does the benchmark of decoding measure what it names?"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def test_a_report_and_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 32 px, one batch each a round."""
    import data

    out = tmp_path / "data.json"
    line = "--size 32 --seconds 0 --rounds 2 --generated 8 --pictures 4 --clock cpu --out"
    monkeypatch.setattr(sys, "argv", ["data.py", *line.split(), str(out)])
    data.main()
    report = json.loads(out.read_text())
    assert set(report) == {"name", "command", "machine", "settings", "rows"}
    rows = {row["contender"]: row for row in report["rows"]}
    assert list(rows) == list(data.CONTENDERS)
    assert all(low <= mid <= high for low, mid, high in (r["images_per_s"] for r in rows.values()))
    assert rows[data.BESIDE]["speed"] == [1, 1, 1]
    assert rows[data.BESIDE]["to_default_db"] is None
    ours = rows["ours, bicubic (default)"]
    assert ours["to_default_db"] == ours["to_pillow_db"] > 70
    assert 25 < rows["ours, bicubic, DCT-scaled decode"]["to_default_db"] < 60
    assert rows["ours, Lanczos"]["to_pillow_db"] is None
    tables = data.tables(report)
    assert set(tables) == {"data-speed", "data-exactness"}
    shown = capsys.readouterr().out
    assert all(table.markdown() in shown for table in tables.values())
    assert "| the same | the same |" in tables["data-exactness"].markdown()


def test_another_filter_is_no_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from photographs import write_photographs

    import data

    paths = write_photographs(tmp_path / "shards", 2, 64)
    wrong = data.Transform(size=32, resample="lanczos")
    monkeypatch.setattr(data, "Transform", lambda **_: wrong)
    with pytest.raises(SystemExit, match=r"ours, bicubic \(default\): 4\d.* no such filter"):
        data.quality(paths, 32, 2)


def test_generated_pictures_weigh_what_photographs_do() -> None:
    """80 KB at 512 px is what docs/scaling.md reckons with."""
    from photographs import photograph

    one, other = photograph(0, 512), photograph(1, 512)
    assert one == photograph(0, 512) != other
    assert len(one) == pytest.approx(80_000, rel=0.1)
    pixels = np.asarray(Image.open(io.BytesIO(one)))
    assert pixels.shape == (512, 512, 3)
    neighbours = np.corrcoef(pixels[:, :-1, 1].ravel(), pixels[:, 1:, 1].ravel())[0, 1]
    assert neighbours > 0.9


@pytest.mark.parametrize("resample", ["bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (40, 75)])
def test_the_float64_reference_is_the_filter_of_pillow(
    resample: str, size: tuple[int, int]
) -> None:
    from photographs import photograph
    from resize_reference import by_pillow, in_float64

    picture = Image.open(io.BytesIO(photograph(0, 96))).crop((0, 0, *size))
    error = in_float64(picture, 32, resample) - np.asarray(by_pillow(picture, 32, resample))
    assert np.mean(error**2) < 0.25  # both passes of Pillow round and clip; the other filter: 1


def test_turns_rotate_and_each_gets_its_own() -> None:
    from turns import quartiles, take_turns, with_quartiles

    met: list[str] = []

    def endless(name: str, size: int) -> Iterator[int]:
        while True:
            met.append(name)
            yield size

    batches = {name: endless(name, n) for n, name in enumerate("abc", 1)}
    rates = take_turns(batches, rounds=3, seconds=0.0, clock="wall")
    assert "".join(met) == "abcbcacababc"  # the first is the warm-up
    assert {name: len(values) for name, values in rates.items()} == {"a": 3, "b": 3, "c": 3}
    assert with_quartiles(quartiles([1.0, 2.0, 3.0])) == "2.00 (1.00–3.00)"
