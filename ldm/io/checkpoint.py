"""What does a checkpoint hold, and how is it written so that it cannot be lost?

A checkpoint is a document of tensors and plain containers, readable with
`torch.load(weights_only=True)`. The layout of a run folder:

    card.json                        what the model is; all that loading needs beside tensors
    checkpoints/s000012800.ckpt      the document after 12,800 samples
    checkpoints/s000012800.json      its manifest: size and blake2b hash, renamed into place first
    checkpoints/last.ckpt            a relative link to the newest
    checkpoints/best.ckpt            one to the best by a metric, where one is kept
    run.lock                         which process writes here, while it does
    frozen/                          the frozen encoders, once
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

log = logging.getLogger(__name__)

CARD_FORMAT = "ldm-card/1"
BEST = "best.ckpt"
_NAME = re.compile(r"s(\d{9,})\.ckpt")
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.Tensor,
    torch.dtype,
    torch.device,
)
_CONTAINERS = (dict, OrderedDict, list, tuple, set, torch.Size)


def checkpoint_path(folder: Path, samples: int) -> Path:
    """Where the document after `samples` samples lies in a run's `checkpoints/` folder."""
    return folder / f"s{samples:09d}.ckpt"


def write(document: dict[str, Any], path: Path) -> None:
    """Writes atomically: temporary file beside it, fsync, hash, manifest first, then the file.

    Never overwrites. Raises TypeError naming the first value that `weights_only=True` would
    refuse, FileExistsError, OSError (disk full); in every case the older files stay as they were.
    """
    bad = next(_unreadable(document, "checkpoint"), None)
    if bad:
        raise TypeError(f"{bad}; only tensors and plain Python containers can be resumed from")
    if path.exists():
        raise FileExistsError(f"{path} exists; checkpoints are never overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("wb") as file:
            _save(document, file, path)
            file.flush()
            os.fsync(file.fileno())
        manifest = {"size": temporary.stat().st_size, "blake2b": file_hash(temporary)}
        write_text(path.with_suffix(".json"), json.dumps(manifest))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read(path: Path) -> dict[str, Any]:
    """The document, tensors on the CPU. Raises ValueError that says what the file is instead."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # truncated: OSError, empty: EOFError, foreign: UnpicklingError
        what = f"{path} ({path.stat().st_size} bytes) is not a readable checkpoint"
        raise ValueError(f"{what}: {type(error).__name__}: {str(error)[:200]}") from error


def is_valid(path: Path) -> bool:
    """Whether size and hash agree with the manifest: a flipped byte loads without any error."""
    manifest_path = path.with_suffix(".json")
    if not (path.is_file() and manifest_path.is_file()):
        return False
    try:
        manifest = json.loads(manifest_path.read_text())
    except ValueError:
        return False
    return bool(
        path.stat().st_size == manifest.get("size") and file_hash(path) == manifest.get("blake2b")
    )


def latest_valid(folder: Path) -> Path | None:
    """The newest checkpoint whose hash holds, walking backwards; None when there is none."""
    for path in reversed(list_checkpoints(folder)):
        if is_valid(path):
            return path
        log.warning("%s is damaged (its hash does not fit); trying the one before it", path)
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("s*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=samples_of)


def samples_of(path: Path) -> int:
    """The samples seen, read from the file's name."""
    match = _NAME.fullmatch(path.name)
    if not match:
        raise ValueError(f"{path.name} is not named like s000012800.ckpt")
    return int(match.group(1))


def point_last(path: Path) -> None:
    """Swaps `last.ckpt` to `path`; a relative link, so that a run folder can be moved."""
    _point(path.with_name("last.ckpt"), path)


def point_best(path: Path) -> None:
    """Swaps `best.ckpt` to `path`, which is not rotated away as long as it is."""
    _point(path.with_name(BEST), path)


def rotate(folder: Path, keep: int, protect: frozenset[str] = frozenset()) -> list[Path]:
    """Deletes all but the newest `keep` checkpoints and the best; called only after a new one is
    valid."""
    best = folder / BEST
    kept = protect | {best.readlink().name if best.is_symlink() else BEST}
    doomed = [p for p in list_checkpoints(folder)[:-keep] if p.name not in kept]
    for path in doomed:
        path.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)
    return doomed


def set_aside(path: Path) -> None:
    """Renames a damaged checkpoint to s….ckpt.damaged, so that a good one can be written there."""
    log.warning("%s is damaged; keeping it as %s.damaged", path, path.name)
    path.replace(path.with_name(f"{path.name}.damaged"))


def clean_stale(folder: Path) -> None:
    """Removes what a killed writer left behind."""
    for path in folder.glob(".tmp-*"):
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Small text files, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def file_hash(path: Path) -> str:
    """blake2b of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """blake2b over names, shapes and fp32 values: one name for equal weights, whatever the file."""
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def read_card(path: Path) -> dict[str, Any]:
    """The card of a run folder or an export. Raises ValueError when it is not one of ours."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a card: {error}") from error
    return check_card(card, str(path))


def check_card(card: object, where: str) -> dict[str, Any]:
    """The card itself when it is one. Raises ValueError that names what came."""
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        came = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ValueError(f"{where}: card format {came!r}; this version reads {CARD_FORMAT!r}")
    return card


def _unreadable(value: object, path: str) -> Iterator[str]:
    kind = type(value)
    if kind in _CONTAINERS:
        items = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
        for key, item in items:
            if type(key) not in _PLAIN:
                yield f"{path}: key {key!r} is a {type(key).__name__}"
            yield from _unreadable(item, f"{path}[{key!r}]")
    elif kind not in _PLAIN and kind is not torch.nn.Parameter:
        yield f"{path} is a {kind.__module__}.{kind.__qualname__}"


def _save(document: dict[str, Any], file: BinaryIO, path: Path) -> None:
    try:
        torch.save(document, file)
    except RuntimeError as error:  # of torch's zip writer, which hides what the disk said
        disk = error.__context__
        if isinstance(disk, OSError):
            raise OSError(disk.errno, disk.strerror, str(path)) from error
        raise


def _point(link: Path, path: Path) -> None:
    temporary = path.with_name(f".tmp-{link.stem}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name)
    os.replace(temporary, link)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
