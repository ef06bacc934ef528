"""Which emoji of SVG icon sets go into shards, and what are they called?

Sets are npm packages `@iconify-json/<set>` (icons.json, chars.json, info.json); names, tags and
groups are Unicode CLDR's, from the npm package `emojibase-data` (<language>/data.json).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm import rng
from ldm.data.make.sample import LeftOut, Plain, Sample

# in the order in which emojibase numbers them
GROUPS = (
    "smileys",
    "people",
    "component",
    "animals",
    "food",
    "travel",
    "activities",
    "objects",
    "symbols",
    "flags",
)
PARTS = ("all", "train", "val")
_COMPONENT = GROUPS.index("component")  # skin tones and hair by themselves: no pictures of things
_MAX_ALIASES = 5
_CURLY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})


@dataclass(frozen=True)
class Name:
    """What Unicode calls an emoji."""

    hexcode: str
    label: str
    tags: tuple[str, ...]
    group: str | None


@dataclass(frozen=True)
class Icon:
    """One drawing and its name."""

    set: str
    license: str
    icon: str
    name: Name
    svg: str


class IconSource:
    """Every emoji of some icon sets that has a CLDR name, drawn on white.

    caption: a template with {label}, {style}, {group}; lowercase acts on the label.
    part: train or val keep the emoji whose name falls on that side of `val_fraction`: the same name
    is on one side in all sets.
    """

    def __init__(
        self,
        *,
        sets: Sequence[str] | None,
        emojibase: str | Path | None,
        caption: str = "{label}, {style} style",
        lowercase: bool = True,
        side_px: int = 64,
        part: str = "all",
        val_fraction: float = 0.05,
        seed: int = 0,
    ) -> None:
        problems = []
        if not sets:
            problems.append("data.sets is not given; list folders of @iconify-json packages")
        if emojibase is None:
            problems.append(
                "data.emojibase is not given; write emojibase=…/emojibase-data/en/data.json"
            )
        if part not in PARTS:
            problems.append(f"part={part!r}; use {', '.join(PARTS)}")
        if not 0 <= val_fraction < 1 or side_px < 8:
            problems.append(f"val_fraction={val_fraction}, side_px={side_px}; use 0 … 1 and >= 8")
        if problems or emojibase is None or sets is None:
            raise ValueError("icons: " + "; ".join(problems))
        self.caption, self.lowercase, self.side_px = caption, lowercase, side_px
        self.part, self.val_fraction, self.seed = part, val_fraction, seed
        _filled(caption, Name("", "label", (), None), "style")  # a wrong template fails here
        names = read_names(Path(emojibase), lowercase=lowercase)
        self.sets = [str(path) for path in sets]
        icons = [icon for path in sets for icon in read_icons(Path(path), names)]
        chosen = [icon for icon in icons if part == "all" or self._is_val(icon) == (part == "val")]
        if not chosen:
            raise ValueError(f"no icon of {', '.join(self.sets)} has a name in {emojibase}")
        order = rng.permutation(seed, "make/icons", 0, len(chosen)).tolist()
        self.icons = [chosen[i] for i in order]

    def __len__(self) -> int:
        return len(self.icons)

    def items(self, start: int = 0) -> Iterator[Sample | LeftOut]:
        """Draws one icon after the other."""
        for icon in self.icons[start:]:
            style = _style(icon.set)
            try:
                picture = draw(icon.svg, side_px=self.side_px)
            except ValueError as error:
                yield LeftOut(f"{icon.set}:{icon.icon}", str(error))
                continue
            meta: dict[str, Plain] = {
                "label": icon.name.label,
                "style": style,
                "tags": list(icon.name.tags),
                "group": icon.name.group,
                "hexcode": icon.name.hexcode,
                "icon": f"{icon.set}:{icon.icon}",
                "license": icon.license,
            }
            caption = _filled(self.caption, icon.name, style)
            yield Sample(f"{style}-{icon.name.label}", picture, caption, meta)

    def spec(self) -> dict[str, Plain]:
        return {
            "source": "icons",
            "sets": list(self.sets),
            "icons": len(self),
            "caption": self.caption,
            "lowercase": self.lowercase,
            "side_px": self.side_px,
            "part": self.part,
            "val_fraction": self.val_fraction,
            "seed": self.seed,
            "license": ", ".join(sorted({icon.license for icon in self.icons})),
        }

    def _is_val(self, icon: Icon) -> bool:
        part = rng.fold(self.seed, f"make/icons/val/{icon.name.label}") / 2**63
        return part < self.val_fraction


def draw(svg: str, *, side_px: int) -> Image.Image:
    """RGB, side_px x side_px, with the drawing in the middle, on white."""
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; icons need resvg: pip install -e '.[icons]'") from error
    # text never occurs in emoji; without system fonts the result is the same on every machine
    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        width=side_px,
        height=side_px,
        background="white",
        skip_system_fonts=True,
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def read_names(path: Path, *, lowercase: bool = True) -> dict[str, Name]:
    """Hexcode -> name, for every emoji that has a label; skin-tone variants are not in it."""
    entries = _json(path, "emojibase=…/emojibase-data/en/data.json")
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not emojibase's data.json: it holds no list")
    names = {}
    for entry in entries:  # variants are nested in `skins`, which is not looked at
        label, group = entry.get("label"), entry.get("group")
        if not label or group == _COMPONENT:
            continue
        names[plain_code(entry["hexcode"])] = Name(
            entry["hexcode"],
            straightened(label.lower() if lowercase else label),
            tuple(straightened(tag) for tag in entry.get("tags", ())),
            None if group is None else GROUPS[group],
        )
    return names


def read_icons(folder: Path, names: Mapping[str, Name]) -> list[Icon]:
    """The icons of a package that have a name, one for each name."""
    icons = _json(folder / "icons.json", "sets=[node_modules/@iconify-json/noto,…]")
    codes = _json(folder / "chars.json", "a package @iconify-json/<set>, it maps codes to icons")
    license = _json(folder / "info.json", "a package @iconify-json/<set>")["license"]
    found: dict[str, Icon] = {}
    for code, icon in codes.items():
        name = names.get(plain_code(code))
        if name is None or name.label in found:
            continue
        svg = svg_of(icons, icon)
        if svg is not None:
            found[name.label] = Icon(icons["prefix"], license["spdx"], icon, name, svg)
    return list(found.values())


def svg_of(icons: Mapping[str, Any], name: str) -> str | None:
    """The SVG of an icon or alias, on a square canvas; None if it is hidden or missing."""
    flips, turns = [False, False], 0
    for _ in range(_MAX_ALIASES):
        alias = icons.get("aliases", {}).get(name)
        record = alias or icons["icons"].get(name)
        if record is None or record.get("hidden"):
            return None
        flips[0] ^= bool(record.get("hFlip"))
        flips[1] ^= bool(record.get("vFlip"))
        turns += int(record.get("rotate", 0))
        if alias is None:
            break
        name = alias["parent"]
    left, top, width, height = (
        float(record.get(key, icons.get(key, default)))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    middle_x, middle_y, side = left + width / 2, top + height / 2, max(width, height)
    box = f"{middle_x - side / 2:g} {middle_y - side / 2:g} {side:g} {side:g}"
    moved = (
        f"translate({middle_x:g} {middle_y:g}) rotate({turns % 4 * 90}) "
        f"scale({-1 if flips[0] else 1} {-1 if flips[1] else 1}) "
        f"translate({-middle_x:g} {-middle_y:g})"
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}"><g transform="{moved}">{record["body"]}</g></svg>'
    )


def plain_code(hexcode: str) -> str:
    """Upper case without variation selectors: sets and CLDR disagree about writing them."""
    return re.sub(r"-FE0[EF]", "", hexcode.upper())


def straightened(text: str) -> str:
    """Straight quotes: nobody types curly ones in a prompt."""
    return text.translate(_CURLY)


def _style(prefix: str) -> str:
    return prefix.split("-")[0]  # fluent-emoji-flat -> fluent


def _filled(template: str, name: Name, style: str) -> str:
    try:
        return template.format(label=name.label, style=style, group=name.group or "")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"caption={template!r} has a wrong placeholder ({error}); "
            "use {label}, {style}, {group}"
        ) from error


def _json(path: Path, hint: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not there; give {hint}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
