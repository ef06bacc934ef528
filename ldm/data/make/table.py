"""Which rows of a table go into shards? CSV, TSV or Parquet, by pyarrow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from ldm.data.make.folder import inside
from ldm.data.make.sample import LeftOut, Plain, Sample

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq")
_BATCH_ROWS = 256  # rows of Parquet with pictures inside that are in memory at once


class TableSource:
    """One sample a row: a picture and its caption; the other columns go to the .json member.

    image_column: a path relative to `root` (default: the table's folder) that must stay inside it,
    or, in Parquet, the bytes of a picture, also as {"bytes": …, "path": …}.
    """

    def __init__(
        self,
        *,
        table: str | Path | None,
        root: str | Path | None = None,
        image_column: str = "image",
        caption_column: str = "caption",
        license: str | None = None,
    ) -> None:
        if table is None:
            raise ValueError(
                "data.table is not given; write data.table=FILE (.csv, .tsv, .parquet)"
            )
        self.table = Path(table)
        if not self.table.is_file():
            raise ValueError(
                f"table={self.table} is not a file; give a .csv, .tsv or .parquet file"
            )
        self.root = self.table.parent if root is None else Path(root)
        self.image_column, self.caption_column = image_column, caption_column
        self.license = license
        self._reader = _reader(self.table, (image_column, caption_column))
        missing = [n for n in (image_column, caption_column) if n not in self._reader.columns]
        if missing:
            raise ValueError(
                f"{self.table} has no column {' and '.join(map(repr, missing))}; it has "
                f"{', '.join(self._reader.columns)}. Choose with data.image_column=… and "
                "data.caption_column=…"
            )

    def __len__(self) -> int:
        return self._reader.rows

    def items(self, start: int = 0) -> Iterator[Sample | LeftOut]:
        """One item a row, in the table's order."""
        for number, row in enumerate(self._reader.read(start), start):
            name = f"row {number + 1}"
            try:
                yield self._sample(number, row)
            except (ValueError, OSError) as error:
                yield LeftOut(name, str(error))

    def spec(self) -> dict[str, Plain]:
        return {
            "source": "table",
            "table": str(self.table),
            "rows": len(self),
            "root": str(self.root),
            "image_column": self.image_column,
            "caption_column": self.caption_column,
            "license": self.license,
        }

    def _sample(self, number: int, row: Mapping[str, Any]) -> Sample:
        image, caption = row[self.image_column], row[self.caption_column]
        if not isinstance(caption, str):
            raise ValueError(f"the caption is {caption!r}, not a text")
        name, data = self._picture(image, number)
        meta: dict[str, Plain] = {
            column: plain
            for column, value in row.items()
            if column not in (self.image_column, self.caption_column)
            and (plain := _plain(value)) is not None
        }
        meta["source"] = name
        if self.license is not None:
            meta.setdefault("license", self.license)
        return Sample(name, data, caption, meta)

    def _picture(self, image: object, number: int) -> tuple[str, bytes]:
        name, data = (
            (image.get("path"), image.get("bytes"))
            if isinstance(image, dict)
            else ((None, image) if isinstance(image, bytes) else (image, None))
        )
        if isinstance(data, bytes):
            return (
                Path(name).name if isinstance(name, str) and name else f"row-{number + 1}"
            ), data
        if not isinstance(name, str) or not name:
            raise ValueError(f"the picture is {image!r}; a path or the bytes of a file is needed")
        if "://" in name:
            raise ValueError(f"{name!r} is a URL; download the pictures first, paths are local")
        return name, inside(self.root, name).read_bytes()


class _Csv:
    """The whole table in memory: paths and texts only."""

    def __init__(self, path: Path, texts: tuple[str, ...]) -> None:
        import pyarrow as pa
        from pyarrow import csv

        parse = csv.ParseOptions(
            delimiter=_SEPARATORS[path.suffix.lower()], newlines_in_values=True
        )
        # as texts, or the caption "007" becomes the number 7
        convert = csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
        try:
            self._table = csv.read_csv(path, parse_options=parse, convert_options=convert)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} cannot be read as a table: {error}") from error
        self.columns = tuple(map(str, self._table.column_names))
        self.rows = int(self._table.num_rows)

    def read(self, start: int) -> Iterator[Mapping[str, Any]]:
        for batch in self._table.slice(start).to_batches(max_chunksize=_BATCH_ROWS):
            yield from batch.to_pylist()


class _Parquet:
    """Read in batches: the pictures may be inside."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            self._file = parquet.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
        self.columns = tuple(map(str, self._file.schema_arrow.names))
        self.rows = int(self._file.metadata.num_rows)

    def read(self, start: int) -> Iterator[Mapping[str, Any]]:
        passed = 0
        for batch in self._file.iter_batches(batch_size=_BATCH_ROWS):
            if passed + batch.num_rows > start:
                yield from batch.slice(max(0, start - passed)).to_pylist()
            passed += batch.num_rows


def _reader(path: Path, texts: tuple[str, ...]) -> _Csv | _Parquet:
    suffix = path.suffix.lower()
    if suffix not in (*_SEPARATORS, *_PARQUET):
        raise ValueError(
            f"table={path} ends in {suffix!r}; use {', '.join((*_SEPARATORS, *_PARQUET))}"
        )
    try:
        return _Parquet(path) if suffix in _PARQUET else _Csv(path, texts)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; tables need pyarrow: pip install -e '.[table]'") from error


def _plain(value: object) -> Plain:
    """A cell as json keeps it; bytes, NaN and other things that json cannot hold become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, date | datetime | Decimal):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return None
