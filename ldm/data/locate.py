"""Which shards does a spec mean?"""

from __future__ import annotations

import difflib
import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from webdataset.shardlists import expand_urls

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_GLOB = re.compile(r"[*?\[]")
_SHOWN = 5


def is_remote(shard: str) -> bool:
    """Whether a shard reaches us through a URL or a command rather than as a file."""
    return shard.startswith("pipe:") or (bool(_URL.match(shard)) and not shard.startswith("file:"))


def expand(spec: str | Path | Sequence[str | Path]) -> list[str]:
    """The shards of a folder, file, glob, brace pattern, URL, `pipe:` command or list of these.

    A folder means all its *.tar files in sorted order. A name that exists is taken verbatim, so
    braces and brackets in folder names do no harm. `a::b` and `${VAR}` (environment variable
    WDS_VAR) mean what they mean to webdataset.
    """
    parts = [spec] if isinstance(spec, (str, Path)) else list(spec)
    if not parts or not all(isinstance(part, (str, Path)) and str(part).strip() for part in parts):
        raise ValueError(
            f"shards={spec!r} names no shards; give a folder, a glob, a brace pattern, "
            "a list of these, a URL or pipe:COMMAND"
        )
    shards: list[str] = []
    missing: list[str] = []
    for part in parts:
        _expand_one(str(part), shards, missing)
    if missing:
        raise FileNotFoundError(_missing_message(missing, len(shards) + len(missing)))
    twice = [shard for shard, count in Counter(shards).items() if count > 1]
    if twice:
        raise ValueError(
            f"shards={spec!r} names {twice[0]} twice ({len(twice)} such shards); "
            "every sample is meant to occur once an epoch: give each shard once"
        )
    return shards


def _expand_one(part: str, shards: list[str], missing: list[str]) -> None:
    local = part.removeprefix("file://").removeprefix("file:")
    if Path(local).expanduser().exists():
        shards.extend(_existing(Path(local).expanduser(), part, missing))
        return
    for name in _braces(part):
        if is_remote(name):
            shards.append(name)
            continue
        path = Path(name.removeprefix("file://").removeprefix("file:")).expanduser()
        if path.exists():
            shards.extend(_existing(path, name, missing))
            continue
        found = sorted(glob.glob(str(path))) if _GLOB.search(str(path)) else []
        tars = [match for match in found if Path(match).is_file()]
        shards.extend(tars)
        if not tars:
            missing.append(name)


def _existing(path: Path, name: str, missing: list[str]) -> list[str]:
    if path.is_file():
        return [str(path)]
    tars = sorted(str(tar) for tar in path.glob("*.tar"))
    if not tars:
        missing.append(name)
    return tars


def _braces(spec: str) -> list[str]:
    try:
        return list(expand_urls(spec))
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"shards={spec!r} cannot be expanded: {error or 'check its braces'}"
        ) from None


def _missing_message(missing: list[str], total: int) -> str:
    lines = [f"{len(missing)} of {total} shards were not found:"]
    lines += [f"  {name}: {_near(name)}" for name in missing[:_SHOWN]]
    if len(missing) > _SHOWN:
        lines.append(f"  … and {len(missing) - _SHOWN} more")
    lines.append(
        "Give a folder, glob, brace pattern, list, URL or pipe:COMMAND (data.train.shards=…), "
        "or make shards first: python scripts/make_shards.py (data/README.md)."
    )
    return "\n".join(lines)


def _near(name: str) -> str:
    """What there is close to a missing path."""
    path = Path(name).expanduser()
    if path.is_dir():
        kinds = Counter(item.suffix or "(no suffix)" for item in path.iterdir() if item.is_file())
        inner = sorted(str(tar.parent) for tar in path.glob("*/*.tar"))
        if inner:
            return f"this folder has no *.tar itself, but {inner[0]} has"
        held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "no files"
        return f"this folder holds {held} and no *.tar"
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        inside = sorted(item.name + "/" for item in folder.iterdir() if item.is_dir())
        wanted = path.relative_to(folder).parts[0] + "/"
        near = difflib.get_close_matches(wanted, inside, n=3, cutoff=0.5) or inside[:3]
        return f"no folder {path.parent}; {folder.absolute()} has {', '.join(near) or 'no folders'}"
    tars = sorted(item.name for item in folder.glob("*.tar"))
    near = difflib.get_close_matches(path.name, tars, n=3, cutoff=0.5) or tars[:3]
    return f"{folder.absolute()} has {len(tars)} *.tar{': ' + ', '.join(near) if near else ''}"
