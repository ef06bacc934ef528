"""What does an evaluation leave in its folder, and may this one use a folder that is there?

protocol.json        what is drawn and how it is measured: a folder holds one protocol
metrics.json         everything that was measured; metrics.csv: a row an entry and metric
pictures/ID/         NNNNNN.png and records.jsonl
strips/ID/           the steps of some pictures
training/ID.csv      the run's own curves
index.html           the report
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.io.checkpoint import write_text

FORMAT = "ldm-evaluation/1"
PROTOCOL, METRICS, TABLE = "protocol.json", "metrics.json", "metrics.csv"
REPORTS = Path("reports")
ENTRY_COLUMNS = (
    *("id", "name", "checkpoint", "weights", "samples_seen"),
    *("sampler", "steps", "guidance"),
)
METRIC_COLUMNS = ("value", "low", "high", "better", "samples", "unit", "note")


def open_folder(
    out: Path | None, protocol: Mapping[str, Any], *, name: str, overwrite: bool
) -> Path:
    """The folder of this protocol, with its protocol.json; pictures in it are kept.

    out: None for one of its own under reports/. Raises ValueError for a folder of another protocol.
    """
    text = json.dumps(protocol, indent=1, ensure_ascii=False, sort_keys=True)
    if out is None:
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        out = REPORTS / f"{name}-{digest}"
    known = _read(out / PROTOCOL)
    if known is not None and not overwrite:
        now = json.loads(text)  # null: not needed by the metrics of that time
        differing = [
            f"{key} {known[key]!r}, now {now[key]!r}"
            for key in sorted(known.keys() & now.keys())
            if None not in (known[key], now[key]) and known[key] != now[key]
        ]
        if differing:
            raise ValueError(
                f"out={out} holds an evaluation of another protocol ({'; '.join(differing)}); give "
                "another out=…, or overwrite=true to measure this one there"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / PROTOCOL, text)
    return out


def write_records(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """records.jsonl of one entry's pictures."""
    lines = (json.dumps(_finite(record), ensure_ascii=False) + "\n" for record in records)
    write_text(folder / "records.jsonl", "".join(lines))


def keep_curve(out: Path, entry: str, source: Path) -> str:
    """A copy of a run's metrics.csv; its name in the folder."""
    target = out / "training" / f"{entry}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return str(target.relative_to(out))


def write_results(out: Path, document: Mapping[str, Any]) -> None:
    """metrics.json and metrics.csv; numbers that are not finite become null."""
    plain = _finite({"format": FORMAT, **document})
    write_text(out / TABLE, _table(plain["entries"]))
    write_text(out / METRICS, json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False))


def _table(entries: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*ENTRY_COLUMNS, "metric", *METRIC_COLUMNS])
    for entry in entries:
        for name, measured in entry["metrics"].items():
            own = [entry[column] for column in ENTRY_COLUMNS]
            writer.writerow([*own, name, *(measured.get(key) for key in METRIC_COLUMNS)])
    return text.getvalue()


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give another out=…") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no protocol; give another out=…")
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
