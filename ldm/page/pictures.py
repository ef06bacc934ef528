"""How are many pictures shown so that they can be looked at and compared?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ldm.page.embed import Embedded, Picture
from ldm.page.templates import render

Captioned = tuple[Picture, str]
MAX_COLUMNS = 16


@dataclass(frozen=True)
class Pictures:
    """Pictures with captions; a click enlarges one, the arrow keys go on to the next.

    Each is (picture, caption): a PIL image or a file. A caption's first line is its title, the
    others are small. columns: on a wide screen; a phone shows fewer.
    """

    pictures: Sequence[Captioned]
    columns: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.columns <= MAX_COLUMNS:
            raise ValueError(f"columns={self.columns}; give 1 to {MAX_COLUMNS}")

    def html(self, embedded: Embedded) -> Markup:
        cells = [_cell(embedded, picture, caption) for picture, caption in self.pictures]
        return render("pictures", {"cells": cells, "columns": self.columns})


@dataclass(frozen=True)
class SideBySide:
    """The same requests answered by several models: picture i of each group stands in card i.

    groups: [(title, [(picture, caption), …])], all of one length; what their captions have in
    common is written once.
    """

    groups: Sequence[tuple[str, Sequence[Captioned]]]

    def __post_init__(self) -> None:
        lengths = {title: len(pictures) for title, pictures in self.groups}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"groups have {lengths} pictures; give as many in each")
        if not 1 <= len(self.groups) <= MAX_COLUMNS:
            raise ValueError(f"{len(self.groups)} groups; give 1 to {MAX_COLUMNS}")

    def html(self, embedded: Embedded) -> Markup:
        cards = []
        for row in zip(*(pictures for _, pictures in self.groups), strict=True):
            cells = [
                {**_cell(embedded, picture, caption), "title": title}
                for (title, _), (picture, caption) in zip(self.groups, row, strict=True)
            ]
            shared = [p for p in ("caption", "rest") if len({cell[p] for cell in cells}) == 1]
            cards.append({"cells": cells, "shared": shared})
        return render("side_by_side", {"cards": cards, "count": len(self.groups)})


def _cell(embedded: Embedded, picture: Picture, caption: str) -> dict[str, object]:
    title, _, rest = caption.partition("\n")
    return {"picture": embedded.add(picture), "caption": title, "rest": rest}
