"""How are values of any kind written so that people can read and compare them?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

NONE = "–"
MINUS = "−"
DIGITS = 4  # significant digits of a number that stands alone
_NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LEADING = re.compile(r"[-+−]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?(?=$|[\s%×/±(–])", re.IGNORECASE)


def shown(value: object) -> str:
    """A value as text: 1,024 · 0.1235 · yes · – · a, b · key: value."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(str(key))}: {shown(item)}" for key, item in value.items()) or NONE
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return ", ".join(shown(item) for item in value) or NONE
    return clean(str(value))


def clean(text: str) -> str:
    """Text without what no HTML file can hold: controls, lone surrogates, non-characters."""
    return _NOT_TEXT.sub("\ufffd", text)


def number(value: object) -> float | None:
    """What a cell is sorted by: a number, or what a text begins with ("12.5 % of all"), or None."""
    if isinstance(value, (int, float)):
        return float(value)
    found = _LEADING.match(value.strip()) if isinstance(value, str) else None
    if found is None:
        return None
    return float(found.group().replace(",", "").replace(MINUS, "-"))


def decimals(values: Sequence[float], *, digits: int = 3) -> int | None:
    """Decimal places that show `digits` of the smallest value; none of whole numbers.

    None where very small and very large ones meet: each is then written on its own.
    """
    sizes = [abs(float(value)) for value in values if math.isfinite(value) and value]
    if not sizes:
        return 0
    if all(value.is_integer() for value in sizes) and max(sizes) < 1e9:
        return 0
    smallest, largest = (math.floor(math.log10(pick(sizes))) for pick in (min, max))
    if smallest < -5 or largest - smallest > 5:
        return None
    return max(0, digits - 1 - smallest)


def fixed(value: float, places: int | None) -> str:
    """A number of a column: as many decimal places as its neighbours have."""
    if places is None or not math.isfinite(value):
        return _float(value)
    return f"{value:,.{places}f}".replace("-", MINUS)


def compact(value: float) -> str:
    """A number at an axis: 0.05 · 20 · 12.5k · 3M · 1e−6."""
    size = abs(value)
    if size and not 1e-4 <= size < 1e12:
        return f"{value:.3g}".replace("e-0", "e-").replace("-", MINUS)
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= factor:
            return f"{value / factor:.10g}{letter}".replace("-", MINUS)
    return f"{value:.10g}".replace("-", MINUS)


def _float(value: float) -> str:
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{MINUS if value < 0 else ''}∞"
    size = abs(value)
    if size and not 1e-4 <= size < 1e9:
        return f"{value:.{DIGITS - 1}e}".replace("-", MINUS)
    places = max(0, DIGITS - 1 - math.floor(math.log10(size))) if size else 0
    text = f"{value:,.{places}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", MINUS)
