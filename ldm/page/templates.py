"""How do values become HTML in which nothing that was given can be anything but text?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ldm.page.numbers import clean

HERE = Path(__file__).parent


def render(name: str, values: Mapping[str, object]) -> Markup:
    """templates/<name>.html with the values; every text that goes in is escaped."""
    return Markup(_environment().get_template(f"{name}.html").render(values))


def asset(ending: str) -> str:
    """All of assets/*.<ending>, in the order of their names."""
    files = sorted((HERE / "assets").glob(f"*.{ending}"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # runs before escaping, on every {{ value }}
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
