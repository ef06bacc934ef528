"""Which modules of a network does a glob name?

A glob is matched against the whole dotted path (`mid_block.attentions.0.proj_in`); `*` also crosses
dots, so `*.to_q` is every to_q.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from fnmatch import translate

from torch import nn

KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)


def find(
    module: nn.Module, globs: Sequence[str], kinds: tuple[type[nn.Module], ...] = KINDS
) -> dict[str, nn.Module]:
    """The submodules of these kinds that any glob names, by path, in the network's order.

    Raises ValueError for every glob that names none, with the nearest paths that would do.
    """
    candidates = {path: part for path, part in module.named_modules() if isinstance(part, kinds)}
    found: set[str] = set()
    problems = [] if globs else ["no glob is given; '*' names every module"]
    for glob in globs:
        matched = matching(candidates, glob)
        if not matched:
            words = " or ".join(kind.__name__ for kind in kinds)
            problems.append(f"{glob!r} names no {words}; nearest: {nearest(glob, candidates)}")
        found.update(matched)
    if problems:
        raise ValueError(f"{type(module).__name__}: " + "; ".join(problems))
    return {path: part for path, part in candidates.items() if path in found}


def matching(names: Iterable[str], glob: str) -> list[str]:
    """The names that a glob matches as a whole, upper and lower case being different."""
    match = re.compile(translate(glob)).match
    return [name for name in names if match(name)]


def nearest(name: str, names: Iterable[str], most: int = 3) -> str:
    """The names most like `name`, to be read in an error; of a glob `*.end`, ends are compared."""
    literal = name.lstrip("*.")
    parts = literal.count(".") + 1 if literal != name else 0

    def likeness(other: str) -> float:
        return SequenceMatcher(None, ".".join(other.split(".")[-parts:]), literal).ratio()

    # sorted is stable: of equally likely names the network's first
    ranked = sorted(names, key=likeness, reverse=True)
    return ", ".join(ranked[:most]) or "none, there are no such modules"
