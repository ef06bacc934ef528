"""How do tables that a script derives get into a page, and do they still agree with it?

A page holds `<!-- table NAME -->`, the table, `<!-- end -->`. What is between is the script's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Table:
    """Cells as they are printed."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The first column to the left, the others to the right."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        return "".join(f"| {' | '.join(row)} |\n" for row in (self.columns, rule, *self.rows))


def figure(value: float, digits: int = 3) -> str:
    """`digits` significant digits, thousands with commas; whole numbers stay whole."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(decimals, 0)}f}"


def spread(middle: float, quartiles: Sequence[float], decimals: int) -> str:
    """A median with its quartiles."""
    low, high = quartiles
    return f"{middle:.{decimals}f} ({low:.{decimals}f}–{high:.{decimals}f})"


def fill(page: str, tables: Mapping[str, Table]) -> str:
    """The page with every table as it is now. Raises ValueError when names do not match."""
    named = [name for _, name, _, _ in _BLOCK.findall(page)]
    if sorted(named) != sorted(tables):
        raise ValueError(f"the page has tables {sorted(named)}, the script {sorted(tables)}")
    return _BLOCK.sub(lambda m: f"{m[1]}{tables[m[2]].markdown()}{m[4]}", page)


def differences(page: str, tables: Mapping[str, Table], *, within: float) -> list[str]:
    """Where the page's tables differ: in words, or in numbers by more than the share `within`."""
    found = []
    for (_, name, old, _), (_, _, new, _) in zip(
        _BLOCK.findall(page), _BLOCK.findall(fill(page, tables)), strict=True
    ):
        lines = old.splitlines(), new.splitlines()
        if len(lines[0]) != len(lines[1]):
            found.append(f"{name}: {len(lines[0])} lines, now {len(lines[1])}")
        found += [
            f"{name}: {a!r} is now {b!r}"
            for a, b in zip(*lines, strict=False)
            if not _alike(a, b, within)
        ]
    return found


def _alike(a: str, b: str, within: float) -> bool:
    if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return False
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    values = ((float(x.replace(",", "")), float(y.replace(",", ""))) for x, y in pairs)
    # one in the last digit of a small whole number is rounding, too
    return all(abs(x - y) <= max(within * max(x, y), 1.0 if x > 10 else 0.1) for x, y in values)
