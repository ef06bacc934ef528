"""What are pages made of: one HTML file that opens from disk and needs nothing else."""

from ldm.page.elements import Bars, Cell, Element, Facts, Table, Text
from ldm.page.numbers import shown
from ldm.page.page import Page
from ldm.page.pictures import Pictures, SideBySide
from ldm.page.plot import Plot, Series

__all__ = [
    "Bars",
    "Cell",
    "Element",
    "Facts",
    "Page",
    "Pictures",
    "Plot",
    "Series",
    "SideBySide",
    "Table",
    "Text",
    "shown",
]
