"""Does the runner call every benchmark, and does docs/performance.md say what they measured?"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest


def test_every_benchmark_reports() -> None:
    from run import ALL

    assert len({benchmark.name for benchmark in ALL}) == len(ALL)
    for benchmark in ALL:
        assert benchmark.path.is_file()
        assert callable(importlib.import_module(benchmark.path.stem).tables)


def test_the_page_is_made_of_the_numbers_beside_it() -> None:
    """After a benchmark: python benchmarks/run.py NAME --write, and read the text."""
    from doc_tables import fill
    from run import NUMBERS, PAGE, tables_in

    assert fill(PAGE.read_text(), tables_in(NUMBERS)) == PAGE.read_text()


def test_a_report_without_its_table_on_the_page_is_told() -> None:
    from doc_tables import fill
    from run import NUMBERS, tables_in

    with pytest.raises(ValueError, match="the page has tables"):
        fill("# Performance\n", tables_in(NUMBERS))


def test_every_comparison_is_in_the_first_table() -> None:
    from glance import glance
    from run import ALL, NUMBERS, reports_in

    reports = reports_in(NUMBERS)
    assert set(reports) == {benchmark.name for benchmark in ALL}
    without_ratio = {"size", "latents"}
    for name in set(reports) - without_ratio:
        assert len(glance({name: reports[name]}).rows) >= 1
    assert len(glance(reports).rows) == sum(len(glance({n: r}).rows) for n, r in reports.items())


@pytest.mark.parametrize(
    ("line", "said"),
    [(["nothing"], "no benchmark nothing; there are: "), (["--quick", "--write"], "too short")],
)
def test_bad_arguments(
    line: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from run import main

    monkeypatch.setattr(sys, "argv", ["run.py", *line])
    with pytest.raises(SystemExit):
        main()
    assert said in capsys.readouterr().err


def test_a_script_is_run_and_its_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import run

    (tmp_path / "good.py").write_text(
        "import json, os, sys\n"
        "from doc_tables import Table\n"
        "def tables(report): return {'good': Table(('a', 'b'), [('x', report['rows'][0])])}\n"
        "if __name__ == '__main__':\n"
        "    report = {'name': 'good', 'command': 'c', 'machine': {'threads': 1},\n"
        "              'rows': [' '.join(sys.argv[1:-1]) + os.environ['OMP_NUM_THREADS']]}\n"
        "    json.dump(report, open(sys.argv[-1], 'w'))\n"
    )
    (tmp_path / "bad.py").write_text("raise SystemExit('it broke')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(run, "NUMBERS", tmp_path / "numbers")
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(
        "<!-- table glance -->\n<!-- end -->\n<!-- table good -->\n<!-- end -->\n"
    )
    monkeypatch.setattr(
        run,
        "ALL",
        (
            run.Benchmark(name="bad", question="?"),
            run.Benchmark(name="good", question="?", args="--seconds 3 ", threads=7),
        ),
    )
    monkeypatch.setattr(sys, "argv", ["run.py", "--write"])
    monkeypatch.setenv("PYTHONPATH", str(run.ROOT / "benchmarks"))
    with pytest.raises(SystemExit, match="failed: bad"):
        run.main()
    assert "it broke" in capfd.readouterr().err
    assert json.loads((tmp_path / "numbers" / "good.json").read_text())["name"] == "good"
    page = (tmp_path / "page.md").read_text()
    assert "| x | --seconds 3 --out7 |" in page.partition("table good -->")[2]
    assert "threads 1" in (tmp_path / "reports" / "bench.md").read_text()
