"""Where do the tensors lie in a file that torch.save wrote?

    zip archive (since 1.6)    NAME/data.pkl, NAME/data/0, NAME/data/1 …: a pickle and its storages
    before                     one pickle after the other, then the storages' bytes

The state dict is what lies under "state_dict"; or the tensors at the top; or what lies under
another of WRAPPERS. In a file without any of them, every tensor is called by its path.
"""

from __future__ import annotations

import io
import logging
import struct
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ldm.io.foreign import UnreadableWeights, shown, unreadable
from ldm.io.pickle_calls import Inert, PickledTensor
from ldm.io.pickles import MAX_BYTES, is_pickle, read_pickle
from ldm.io.regions import Region

log = logging.getLogger(__name__)
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older files
ZIP = b"PK\x03\x04"
PICKLE = "data.pkl"
WRAPPERS = ("state_dict", "model", "module", "params_ema", "params")
VALUES = (int, float, str, bool, type(None))
NESTED = (dict, list, tuple, PickledTensor)
MAX_DEPTH = 32  # of containers in containers; checkpoints have 5


@dataclass(frozen=True, slots=True)
class Record:
    """The bytes of a storage."""

    start: int
    nbytes: int


@dataclass(frozen=True)
class TorchFile:
    """content: what was saved, inert (see pickles.py); records: its storages by key."""

    path: Path
    content: Any
    records: dict[str, Record]
    left_out: list[str]


def is_torch(path: Path, start: bytes) -> bool:
    """Whether a file that begins with `start` is to be read here: a zip archive or a pickle."""
    if start.startswith(ZIP) or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        return True
    with path.open("rb") as file:
        return is_pickle(file)


def open_torch(path: Path) -> TorchFile:
    """The file's structure; no tensor is read. Raises UnreadableWeights."""
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
        file.seek(0)
        return _open_zip(path, file) if zipped else _open_pickles(path, file)


def tensors_and_values(file: TorchFile) -> tuple[dict[str, Region], dict[str, Any]]:
    """The state dict (see the top of this file), and the plain values at the top.

    Raises UnreadableWeights when there is no tensor, or a storage is not as declared.
    """
    content = file.content
    if isinstance(content, Inert):
        raise unreadable(
            file.path, f"a pickled object ({content.name}), not its tensors; save its state_dict()"
        )
    found = _state_dict(file.path, content) if isinstance(content, dict) else {}
    if not found:
        raise unreadable(file.path, "a pickle without named tensors")
    if file.left_out:
        log.info("%s: objects of %s are left out", file.path, shown(file.left_out, 5))
    values = {k: v for k, v in content.items() if isinstance(k, str) and type(v) in VALUES}
    return {name: _region(file, name, tensor) for name, tensor in found.items()}, values


# -- the state dict in what was saved --------------------------------------------------------------


def _state_dict(path: Path, content: dict[Any, Any]) -> dict[str, PickledTensor]:
    first, *others = WRAPPERS
    for candidate in (content.get(first), content, *map(content.get, others)):
        if isinstance(candidate, dict):
            tensors = {k: v for k, v in candidate.items() if isinstance(v, PickledTensor)}
            if tensors and all(isinstance(name, str) for name in tensors):
                return tensors
    return _flattened(path, content)


def _flattened(where: Path, content: Any) -> dict[str, PickledTensor]:
    """Every tensor by its path: 320.0.linear.weight. What lies at two places is taken once, as a
    file may refer to itself."""
    found: dict[str, PickledTensor] = {}
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, PickledTensor):
            found[".".join(path)] = value
        elif id(value) not in seen:
            if len(path) > MAX_DEPTH:
                raise UnreadableWeights(
                    f"{where} nests containers deeper than {MAX_DEPTH}; no checkpoint does"
                )
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            parts = [((*path, str(k)), v) for k, v in items if isinstance(v, NESTED)]
            waiting += reversed(parts)
    return found


def _region(file: TorchFile, name: str, tensor: PickledTensor) -> Region:
    storage = tensor.storage
    record = file.records.get(storage.key)
    if record is None:
        raise UnreadableWeights(
            f"{file.path} lacks storage {shown([storage.key])}, of the tensor {shown([name])}"
        )
    if record.nbytes != storage.nbytes:
        raise UnreadableWeights(
            f"{file.path}: storage {shown([storage.key])} has {record.nbytes:,} bytes, its "
            f"pickle declares {storage.nbytes:,} (tensor {shown([name])})"
        )
    start = record.start + tensor.offset * tensor.dtype.itemsize
    stride = None if _is_dense(tensor) else tensor.stride
    return Region(file.path, start, tensor.dtype, tensor.shape, stride)


def _is_dense(tensor: PickledTensor) -> bool:
    """Whether the elements lie one after the other, the last dimension's first."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


# -- zip archives ----------------------------------------------------------------------------------


def _open_zip(path: Path, file: BinaryIO) -> TorchFile:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise UnreadableWeights(
            f"{path} ({path.stat().st_size:,} bytes) is a PyTorch file or zip archive that was cut "
            "off: its table of contents, at the end, is missing or damaged; get it once more"
        ) from error
    by_name = {entry.filename: entry for entry in entries}
    _check_names(path, [entry.filename for entry in entries])
    pickles = [n for n in by_name if n == PICKLE or n.endswith(f"/{PICKLE}")]
    if len(pickles) != 1:
        raise unreadable(path, _zip_words(list(by_name)))
    folder = pickles[0].removesuffix(PICKLE)
    if f"{folder}constants.pkl" in by_name:
        raise unreadable(path, "a TorchScript program; save the state_dict() of its model")
    order = by_name.get(f"{folder}byteorder")
    if order and _content(path, file, order, 16).strip() != b"little":
        raise UnreadableWeights(f"{path} was written on a big-endian machine; convert it there")
    raw = _content(path, file, by_name[pickles[0]], MAX_BYTES)
    pickle = read_pickle(io.BytesIO(raw), str(path))
    names = {key: f"{folder}data/{key}" for key in pickle.storages}
    records = {k: _record(path, file, by_name[n]) for k, n in names.items() if n in by_name}
    return TorchFile(path, pickle.content, records, pickle.left_out)


def _check_names(path: Path, names: list[str]) -> None:
    """Nothing is unpacked here, but an archive with such names is no honest one."""
    tricks = [n for n in names if n.startswith("/") or "\\" in n or ".." in n.split("/")]
    if tricks:
        raise UnreadableWeights(f"{path} holds paths that lead out of it: {shown(tricks)}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UnreadableWeights(f"{path} holds several entries of the same name: {shown(twice)}")


def _zip_words(names: list[str]) -> str:
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    return f"a zip archive that PyTorch did not write (in it: {shown(names)}); unpack it first"


def _record(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> Record:
    """Where an entry's bytes are. Raises UnreadableWeights when they are not there as they are."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise UnreadableWeights(
            f"{path}: {shown([entry.filename])} in it is compressed or encrypted; PyTorch does "
            "neither: unpack it with what packed it"
        )
    size = path.stat().st_size
    inside = 0 <= entry.header_offset <= size and entry.compress_size == entry.file_size
    file.seek(entry.header_offset if inside else size)
    header = file.read(30)
    if header[:4] != ZIP or len(header) < 30:
        raise UnreadableWeights(
            f"{path} is damaged at its entry {shown([entry.filename])}; get it once more"
        )
    lengths = struct.unpack("<HH", header[26:30])  # of the name and of what pads the bytes
    start = entry.header_offset + 30 + sum(lengths)
    end = start + entry.file_size
    if end > size:
        raise UnreadableWeights(
            f"{path}: {shown([entry.filename])} in it ends at byte {end:,}, the file at {size:,}"
        )
    return Record(start, entry.file_size)


def _content(path: Path, file: BinaryIO, entry: zipfile.ZipInfo, most: int) -> bytes:
    record = _record(path, file, entry)
    if record.nbytes > most:
        raise UnreadableWeights(
            f"{path}: {shown([entry.filename])} in it has {record.nbytes:,} bytes; no checkpoint's "
            f"has more than {most:,}"
        )
    file.seek(record.start)
    return file.read(record.nbytes)


# -- older files -----------------------------------------------------------------------------------


def _open_pickles(path: Path, file: BinaryIO) -> TorchFile:
    """Magic number, version and system; what was saved; the storages' keys; then their bytes."""
    where = str(path)
    magic = read_pickle(file, where).content
    if type(magic) is not int or magic != MAGIC:
        raise unreadable(path, "a pickle that torch.save did not write")
    version, system = read_pickle(file, where).content, read_pickle(file, where).content
    little = system.get("little_endian") if isinstance(system, dict) else None
    if type(version) is not int or version != PROTOCOL or little is not True:
        raise UnreadableWeights(f"{path} was written by an unknown PyTorch, or is big-endian")
    saved = read_pickle(file, where)
    keys = read_pickle(file, where).content
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UnreadableWeights(f"{path} does not list its storages")
    records: dict[str, Record] = {}
    size = path.stat().st_size
    for key in keys:
        storage = saved.storages.get(key)
        count = int.from_bytes(file.read(8), "little")
        if storage is None or count != storage.numel or file.tell() + storage.nbytes > size:
            raise UnreadableWeights(
                f"{path} ({size:,} bytes) is cut off or damaged: storage {len(records) + 1} of "
                f"{len(keys)} is not there as declared; get it once more"
            )
        records[key] = Record(file.tell(), storage.nbytes)
        file.seek(storage.nbytes, io.SEEK_CUR)
    return TorchFile(path, saved.content, records, saved.left_out)
