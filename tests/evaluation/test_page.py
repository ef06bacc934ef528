"""Does the page of an evaluation say what its folder says, and only that?"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ldm.evaluation.page import write_report
from ldm.evaluation.page_folder import read_evaluation
from ldm.evaluation.page_pictures import spread
from ldm.evaluation.page_words import fact, judged, labels, listed, metric_name, model_labels

_spec = importlib.util.spec_from_file_location(
    "page_example", Path(__file__).with_name("page_example.py")
)
assert _spec is not None
assert _spec.loader is not None
example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)

Document = dict[str, Any]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Document]:
    """A folder in which eps is better than v by everything."""
    return tmp_path, example.write_example(tmp_path, [example.entry("eps"), example.entry("v")])


def text_of(folder: Path) -> str:
    """The page's text, tags taken out."""
    html = write_report(folder).read_text(encoding="utf-8")
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))).replace("\u00a0", " ")


def headings(folder: Path) -> list[str]:
    html = write_report(folder).read_text(encoding="utf-8")
    return re.findall(r'<h2 id="[^"]*" dir="auto">([^<]*)</h2>', html)


# -- what it says ----------------------------------------------------------------------------------


def test_a_page_of_two_models(two: tuple[Path, Document]) -> None:
    folder, _ = two
    assert write_report(folder) == folder / "index.html"
    assert headings(folder) == [
        *("Verdict", "Numbers", "Protocol", "Loss", "Differences"),
        *("Side by side", "Pictures", "Best and worst", "From noise"),
    ]
    text = text_of(folder)
    assert "Evaluation of eps and v" in text
    assert "2 entries, 16 pictures each. True pictures: shapes." in text
    assert "eps is best by FID, CLIP score and recall." in text
    assert "eps has a lower loss than v by 0.012 ± 0.003." in text
    assert "The best are not told apart, as intervals overlap: KID." in text
    assert "Small differences say nothing without an interval: FID and recall." in text
    assert "Made with ldm 0.1.0 · torch 2.13.0 · device cpu" in text


def test_who_wins_everything_is_said_so(two: tuple[Path, Document]) -> None:
    folder, document = two
    for entry in document["entries"]:
        del entry["metrics"]["kid"]
    example.save(folder, document)
    assert "eps is best by all 3 metrics." in text_of(folder)


def test_each_wins_what_it_wins(two: tuple[Path, Document]) -> None:
    folder, document = two
    document["entries"][1]["metrics"]["fid"]["value"] = 0.5
    document["entries"][1]["metrics"]["recall"] = document["entries"][0]["metrics"]["recall"]
    example.save(folder, document)
    text = text_of(folder)
    assert "v is best by FID; eps by CLIP score." in text  # a tie is nobody's


def test_numbers_have_their_intervals_and_the_best_stands_out(two: tuple[Path, Document]) -> None:
    folder, _ = two
    html = write_report(folder).read_text(encoding="utf-8")
    table = html[html.index("<table>") : html.index("</table>")]
    assert re.findall(r'class="number best"[^>]*><bdi>([^<]*)', table) == (
        ["3.00", "0.0120", "24.0", "0.610"]
    )
    assert "<small><bdi>23.3 to 24.7</bdi></small>" in table


def test_one_model_has_its_numbers_for_a_verdict(tmp_path: Path) -> None:
    example.write_example(tmp_path, [example.entry("eps")])
    text = text_of(tmp_path)
    assert "eps: FID 3, KID 0.012 (0.01 to 0.014), CLIP score 24 (23.3 to 24.7)" in text
    assert "Side by side" not in text
    assert "best by" not in text


def test_paired_texts_that_are_no_chance_come_first(two: tuple[Path, Document]) -> None:
    folder, document = two
    chance = {**document["paired"][0], "low": -1, "text": "cannot be told apart"}
    part = {**document["paired"][0], "quantity": "loss, t 0.0 to 0.1", "text": "a part only"}
    document["paired"] = [chance, part, *document["paired"]]
    example.save(folder, document)
    text = text_of(folder)
    assert text.index("eps has a lower loss") < text.index("cannot be told apart.")
    assert "a part only" not in text  # in the table of differences by its number
    assert "Loss, t 0.0 to 0.1" in text


def test_what_was_counted_is_said(two: tuple[Path, Document]) -> None:
    folder, document = two
    document["counts"] = {"corrupt": 3, "left out": 0}
    document["notes"] = ["KID needs more pictures"]
    example.save(folder, document)
    text = text_of(folder)
    assert "Counted: corrupt: 3." in text
    assert "KID needs more pictures" in text


def test_checkpoints_of_a_run_are_curves(tmp_path: Path) -> None:
    entries = [example.entry("run", samples_seen=n) for n in (1000, 2000, 4000)]
    example.write_example(tmp_path, entries)
    assert "Over training" in headings(tmp_path)
    text = text_of(tmp_path)
    assert "run: " not in text
    assert "FID: 3 at 1,000" in _points(tmp_path)
    assert "CLIP score: 24 [23.3, 24.7] at 1,000" in _points(tmp_path)
    assert "1,000 samples is best by" in text


def test_a_sweep_has_a_front(tmp_path: Path) -> None:
    entries = [example.entry("run", guidance=g) for g in (1.0, 3.0, 5.0)]
    document = example.write_example(tmp_path, entries)
    document["sweep"] = {
        "axes": {"guidance": [1, 3, 5]},
        "metrics": ["fid", "recall"],
        "pareto": [entries[0]["id"]],
    }
    example.save(tmp_path, document)
    assert "Sweep" in headings(tmp_path)
    points = _points(tmp_path)
    assert "guidance 1: 0.61 at 3" in points
    assert "FID: 3.9 at 3" in points  # over guidance
    assert "Recall against FID" in text_of(tmp_path)


def test_curves_from_training(two: tuple[Path, Document]) -> None:
    folder, _ = two
    points = _points(folder)
    assert any(point.startswith("eps: ") and point.endswith(" at 640") for point in points)
    assert "Validation loss, EMA weights" in text_of(folder)
    csv = folder / "training" / "eps.csv"
    csv.write_text("samples_seen,eval/fid\n1000,7\n2000,5\n", encoding="utf-8")
    assert "FID in training" in text_of(folder)


def test_a_broken_picture_is_left_out_and_counted(two: tuple[Path, Document]) -> None:
    folder, document = two
    pictures = folder / document["entries"][0]["pictures"]
    (pictures / "000003.png").write_bytes(b"no picture")
    (pictures / "000005.png").unlink()
    text = text_of(folder)
    assert "Left out, as they cannot be read: 2 (000003.png, 000005.png)." in text


def test_the_lowest_scores_come_before_the_highest(tmp_path: Path) -> None:
    example.write_example(tmp_path, [example.entry("eps")])
    html = write_report(tmp_path).read_text(encoding="utf-8")
    ends = html[html.index('id="best-and-worst"') : html.index('id="from-noise"')]
    scores = [
        float(score) for score in re.findall(r"· CLIP ([\d.]+)", re.sub(r"<[^>]*>", "", ends))
    ]
    assert len(scores) == 16
    assert scores[:8] == sorted(scores[:8])
    assert scores[8:] == sorted(scores[8:], reverse=True)
    assert max(scores[:8]) <= min(scores[8:])


def test_a_run_of_several_entries_has_one_curve(tmp_path: Path) -> None:
    example.write_example(tmp_path, [example.entry("run", guidance=g) for g in (1.0, 5.0)])
    ends = [point for point in _points(tmp_path) if point.endswith(" at 39,680")]
    assert [point.partition(":")[0] for point in ends] == ["run", "run"]  # both losses of one run


def test_captions_are_only_text(two: tuple[Path, Document]) -> None:
    folder, document = two
    hostile = "</script><img src=x onerror=alert(1)>"
    for entry in document["entries"]:
        entry["name"] += hostile
        records = folder / entry["pictures"] / "records.jsonl"
        lines = [json.loads(line) for line in records.read_text().splitlines()]
        for line in lines:
            line["caption"] = hostile
        records.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    example.save(folder, document)
    html = write_report(folder).read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert html.count("</script>") == 1


def test_many_entries_do_not_make_a_page_of_all_pictures(tmp_path: Path) -> None:
    entries = [example.entry("run", steps=n) for n in range(1, 31)]
    example.write_example(tmp_path, entries)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    grids = html[html.index('id="pictures"') : html.index('id="best-and-worst"')]
    assert grids.count("<img") == 30 * 8
    cards = html[html.index('id="side-by-side"') : html.index('id="pictures"')]
    assert cards.count('class="card"') == 16
    assert cards.count("<img") == 16 * 6


def test_nothing_that_tells_entries_apart(tmp_path: Path) -> None:
    document = example.write_example(tmp_path, [example.entry("eps"), example.entry("v")])
    document["entries"][1]["metrics"] = document["entries"][0]["metrics"]
    document["paired"] = []
    example.save(tmp_path, document)
    assert "Nothing that was measured tells these apart." in text_of(tmp_path)
    assert "best" not in re.findall(
        r'class="number ?([^"]*)"', (tmp_path / "index.html").read_text()
    )


# -- what it refuses -------------------------------------------------------------------------------


def change(folder: Path, document: Document, *keys: Any, value: Any) -> None:
    node: Any = document
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    example.save(folder, document)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("format",), "ldm-evaluation/2", "format 'ldm-evaluation/2'; this reads"),
        (("entries",), [], "one or more, each with its own id"),
        (("entries",), 3, "entries is 3; give list or null"),
        (("entries", 1, "id"), None, r"entries\[1\]: id is None; give str"),
        (("entries", 0, "metrics", "fid", "value"), "x", r"fid: value is 'x'; give int or float"),
        (("entries", 0, "metrics", "fid", "better"), "up", "better is 'up'; give 'lower' or"),
        (("entries", 0, "pictures"), "../else", "lies outside of it"),
        (("entries", 0, "strips"), ["/etc/passwd"], "lies outside of it"),
        (("training",), {"eps": "../../x.csv"}, "lies outside of it"),
        (("loss_by_time", "edges"), [0, 1], r"\[4, 4, 4\] numbers, 2 edges; give one a bin"),
        (("entries", 0, "metrics", "fid", "samples"), True, "samples is True; give int or null"),
        (("notes",), [True], r"notes\[0\] is True; give str"),
    ],
)
def test_a_document_that_is_wrong(
    two: tuple[Path, Document], keys: tuple[Any, ...], value: Any, said: str
) -> None:
    folder, document = two
    change(folder, document, *keys, value=value)
    with pytest.raises(ValueError, match=said):
        write_report(folder)
    assert not (folder / "index.html").exists()


def test_two_entries_of_one_id(two: tuple[Path, Document]) -> None:
    folder, document = two
    change(folder, document, "entries", 1, "id", value="eps")
    with pytest.raises(ValueError, match="each with its own id"):
        write_report(folder)


def test_files_that_are_not_there(two: tuple[Path, Document]) -> None:
    folder, document = two
    (folder / "training" / "eps.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"eps\.csv does not exist, but metrics\.json names"
    ):
        write_report(folder)
    change(folder, document, "training", value={})
    (folder / document["entries"][0]["pictures"] / "records.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"records\.jsonl does not exist"):
        write_report(folder)
    with pytest.raises(FileNotFoundError, match="give the folder that"):
        write_report(folder / "none")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_metrics_that_are_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.json"):
        write_report(tmp_path)


def test_a_picture_outside_of_the_folder(two: tuple[Path, Document]) -> None:
    folder, document = two
    records = folder / document["entries"][0]["pictures"] / "records.jsonl"
    records.write_text('{"file": "../../../x.png", "index": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match="lies outside of it"):
        write_report(folder)
    records.write_text('{"file": "a.png", "index": 0}\n7\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"records\.jsonl:2 is 7; give dict"):
        write_report(folder)


def test_what_is_missing_is_no_section(two: tuple[Path, Document]) -> None:
    folder, document = two
    bare = {"format": document["format"], "entries": [{"id": "a", "metrics": {}}]}
    example.save(folder, bare)
    assert headings(folder) == ["Verdict", "Numbers"]
    assert "a: nothing was measured." in text_of(folder)


def test_a_number_that_could_not_be_had(two: tuple[Path, Document]) -> None:
    folder, document = two
    change(folder, document, "entries", 0, "metrics", "fid", "value", value=None)
    assert math.isnan(read_evaluation(folder).entries[0].metrics["fid"].value)
    assert "eps is best by CLIP score and recall." in text_of(folder)


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (({"name": "a"}, {"name": "b"}), ["a", "b"]),
        (({"guidance": 1.0}, {"guidance": 2.5}), ["guidance 1", "guidance 2.5"]),
        (
            ({"name": "a", "weights": "ema"}, {"name": "a", "weights": "raw"}, {"name": "b"}),
            ["a, EMA", "a, raw", "b, EMA"],
        ),
    ],
)
def test_labels_say_what_tells_entries_apart(
    tmp_path: Path, facts: tuple[Document, ...], expected: list[str]
) -> None:
    entries = [{**example.entry("run"), **one} for one in facts]
    for number, one in enumerate(entries):
        one["id"] = str(number)
    example.write_example(tmp_path, entries, count=1)
    said = labels(read_evaluation(tmp_path))
    assert [label.replace("\u00a0", " ") for label in said.values()] == expected


def test_models_are_called_without_how_they_draw(tmp_path: Path) -> None:
    entries = [example.entry("run", guidance=g, samples_seen=n) for g in (1.0, 5.0) for n in (1, 2)]
    example.write_example(tmp_path, entries, count=1)
    evaluation = read_evaluation(tmp_path)
    first, second, third, _ = (entry["id"] for entry in entries)
    assert model_labels(evaluation, [first, second])[second] == "2\u00a0samples"
    assert model_labels(evaluation, [first])[first] == "run"
    assert "guidance\u00a05" in model_labels(evaluation, [first, third])[third]


def test_parts_of_a_metric_come_last_and_have_no_plot(tmp_path: Path) -> None:
    entries = [example.entry("run", samples_seen=n) for n in (1000, 2000)]
    document = example.write_example(tmp_path, entries)
    for entry in document["entries"]:
        metrics = entry["metrics"]
        entry["metrics"] = {"judge_size": metrics["fid"], "judge": metrics["kid"], **metrics}
    example.save(tmp_path, document)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    columns = re.findall(r"<button type=\"button\"><bdi>([^<]*)", html[: html.index("</table>")])
    assert columns[1:] == ["Judge ↓", "FID ↓", "KID ↓", "CLIP score ↑", "Recall ↑", "Judge size ↓"]
    assert any(point.startswith("Judge: ") for point in _points(tmp_path))
    assert not any(point.startswith("Judge size") for point in _points(tmp_path))


def test_words() -> None:
    assert metric_name("clip_score") == "CLIP score"
    assert metric_name("judge_colour") == "Judge colour"
    assert fact("samples_seen", 40_000) == "40,000\u00a0samples"
    assert listed([]) == ""
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert judged({}) == ""
    assert judged({"right": True, "shape": "star", "confidence": 0.9}) == "judge: right"
    assert (
        judged({"right": False, "shape": "star", "colour": "red"}) == "judge: wrong, sees red star"
    )
    assert judged({"right": False, "shape": None}) == "judge: wrong, sees no clear shape"
    assert judged({"right": False}) == "judge: wrong"


def test_spread_holds_both_ends() -> None:
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert spread([1, 2], 4) == [1, 2]
    assert spread([1, 2], 1) == [1]


def _points(folder: Path) -> list[str]:
    """What the page's plots say of their points."""
    html = write_report(folder).read_text(encoding="utf-8")
    return [unescape(p).replace("\u00a0", " ") for p in re.findall(r'data-text="([^"]*)"', html)]
