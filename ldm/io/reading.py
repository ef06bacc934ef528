"""What tensors does a weight file hold, and how are they read without holding them twice?

    .safetensors                    see https://huggingface.co/docs/safetensors
    *.index.json                    the index of weights in several files ("shards")
    .ckpt .pt .pth .bin             torch.save, old and new (torch_files.py); nothing is executed

What a file is follows from its bytes, not from its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.io.checkpoint import CARD_FORMAT
from ldm.io.foreign import UnreadableWeights, shown, start_of, unreadable, words_of
from ldm.io.regions import Region, converted, is_finite, read_region, staging
from ldm.io.torch_files import TorchFile, is_torch, open_torch, tensors_and_values

INDEX = "*.index.json"
MAX_HEADER = 100_000_000  # bytes, safetensors' own limit
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for, into memory of its own.

    metadata: a safetensors file's texts; values: the plain values beside the tensors of a pickle
    (so there is no method of that name). Names, shapes and dtypes cost nothing.
    """

    path: Path
    metadata: dict[str, str]
    values: dict[str, Any]  # type: ignore[assignment]

    def __init__(
        self,
        path: Path,
        regions: Mapping[str, Region],
        *,
        metadata: Mapping[str, str] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.metadata = dict(metadata or {})
        self.values = dict(values or {})
        self._regions = dict(regions)

    def __getitem__(self, name: str) -> Tensor:
        """As stored. Raises KeyError, UnreadableWeights."""
        return next(self.read([name]))[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def __contains__(self, name: object) -> bool:
        return name in self._regions

    def shape(self, name: str) -> tuple[int, ...]:
        return self._regions[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._regions[name].dtype

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: region.shape for name, region in self._regions.items()}

    def read(
        self, names: Iterable[str] | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors (None: all), in the file's order. Beside what was given out, memory
        for the largest tensor is held.

        dtype: what floating tensors are converted to. None leaves every bit as it is; given, also
        the same one, each tensor is checked: UnreadableWeights names those with NaN or infinity,
        in the file or made by the conversion. Raises KeyError for names that are not there.
        """
        wanted = self._wanted(names)
        buffer = staging(wanted.values(), dtype)
        bad: list[str] = []
        for path, group in groupby(wanted.items(), key=lambda item: item[1].path):
            with path.open("rb", buffering=0) as file:
                for name, region in group:
                    value = read_region(file, region, converted(region, dtype), buffer)
                    if dtype and value.is_floating_point() and not is_finite(value):
                        bad.append(name)
                    elif not bad:
                        yield name, value
        if bad:
            raise UnreadableWeights(self._not_finite(bad, dtype))

    def _wanted(self, names: Iterable[str] | None) -> dict[str, Region]:
        """In the file's order."""
        if names is None:
            return self._regions
        asked = set(names)
        missing = sorted(asked - self._regions.keys())
        if missing:
            raise KeyError(f"{self.path} holds no tensor {shown(missing)}")
        return {name: region for name, region in self._regions.items() if name in asked}

    def _not_finite(self, bad: list[str], dtype: torch.dtype | None) -> str:
        overflown = [n for n in bad if self._regions[n].dtype != dtype and is_finite(self[n])]
        if len(overflown) == len(bad):
            return (
                f"{self.path}: {len(bad)} tensors are beyond the range of {dtype}, as "
                f"{shown(bad)}; use float32 or bfloat16"
            )
        broken = [name for name in bad if name not in overflown]
        return (
            f"{self.path}: {len(broken)} tensors hold NaN or infinity, as {shown(broken)}; it is "
            "damaged, or its training diverged"
        )


def open_tensors(path: Path) -> TensorFile:
    """The tensors of a file, of an index's shards, or of the one index in a folder.

    Raises FileNotFoundError, or UnreadableWeights that says what is there instead.
    """
    if path.is_dir():
        path = _index_in(path)
    start = start_of(path)
    if start.lstrip().startswith(b"{") and not _is_safetensors(start):
        return _open_shards(path)
    return _open_file(path)


def is_document(path: Path) -> bool:
    """Whether a file is a training checkpoint of ours (see checkpoint.py), which has a card.

    Raises FileNotFoundError, and UnreadableWeights for a pickle that is damaged or unsafe.
    """
    start = start_of(path)
    return not _is_safetensors(start) and is_torch(path, start) and _is_document(open_torch(path))


def _open_file(path: Path) -> TensorFile:
    """Of a single file."""
    start = start_of(path)
    if _is_safetensors(start):
        return _open_safetensors(path)
    if is_torch(path, start):
        file = open_torch(path)
        if _is_document(file):
            raise unreadable(path, "a training checkpoint of ours, with its card; open it as such")
        regions, values = tensors_and_values(file)
        return TensorFile(path, regions, values=values)
    raise unreadable(path, words_of(start))


def _is_document(file: TorchFile) -> bool:
    card = file.content.get("card") if isinstance(file.content, dict) else None
    said = card.get("format") if isinstance(card, dict) else None
    return isinstance(said, str) and said.startswith(CARD_FORMAT.partition("/")[0] + "/")


# -- safetensors -----------------------------------------------------------------------------------


def _is_safetensors(start: bytes) -> bool:
    """A length of 8 bytes, then that much JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER


def _open_safetensors(path: Path) -> TensorFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    if len(text) < length:
        raise UnreadableWeights(_cut_off(path, 8 + length, size))
    damaged = f"{path} is a damaged safetensors file; get it once more"
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        end = 8 + length + max((e["data_offsets"][1] for e in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableWeights(damaged) from error
    if end > size:
        raise UnreadableWeights(_cut_off(path, end, size))
    try:
        with safe_open(path, framework="pt"):
            pass  # the library checks that shapes, offsets and the file's size fit each other
    except SafetensorError as error:
        raise UnreadableWeights(f"{damaged} ({shown([str(error)])})") from error
    regions = {name: _safetensor(path, 8 + length, entry) for name, entry in header.items()}
    if not regions:
        raise unreadable(path, "a safetensors file without any tensor")
    in_order = sorted(regions.items(), key=lambda item: item[1].start)
    return TensorFile(path, dict(in_order), metadata=metadata)


def _safetensor(path: Path, begin: int, entry: Mapping[str, Any]) -> Region:
    if entry["dtype"] not in DTYPES:
        raise UnreadableWeights(
            f"{path} holds tensors of dtype {shown([entry['dtype']])}; known: {', '.join(DTYPES)}"
        )
    place = begin + entry["data_offsets"][0]
    return Region(path, place, DTYPES[entry["dtype"]], tuple(entry["shape"]))


def _cut_off(path: Path, declared: int, size: int) -> str:
    return (
        f"{path} is a safetensors file that was cut off: its header says {declared:,} bytes, the "
        f"file has {size:,}; get it once more"
    )


# -- shards ----------------------------------------------------------------------------------------


def _index_in(folder: Path) -> Path:
    found = sorted(folder.glob(INDEX))
    if len(found) == 1:
        return found[0]
    if found:
        names = shown([p.name for p in found], 10)
        raise unreadable(folder, f"a folder with several indices of shards ({names}); name one")
    files = sorted(p.name for p in folder.iterdir() if p.is_file())
    inside = f"in it: {shown(files, 10)}" if files else "it holds no file"
    raise unreadable(folder, f"a folder without an index of shards ({inside}); name a file")


def _open_shards(path: Path) -> TensorFile:
    """The tensors of all shards. Raises UnreadableWeights when they are not what the index says."""
    place = _weight_map(path)
    shards = {name: path.parent / name for name in sorted(set(place.values()))}
    missing = [name for name, shard in shards.items() if not shard.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(shards)} shards are missing beside it: "
            f"{shown(missing, len(missing))}"
        )
    regions: dict[str, Region] = {}
    metadata: dict[str, str] = {}
    for name, shard in shards.items():
        file = _open_file(shard)
        listed = {tensor for tensor, where in place.items() if where == name}
        wrong = sorted(listed ^ set(file))
        if wrong:
            raise UnreadableWeights(
                f"{path} and {shown([name])} disagree about {len(wrong)} tensors, as "
                f"{shown(wrong)}: they are of different models"
            )
        regions |= file._regions
        metadata |= file.metadata
    return TensorFile(path, regions, metadata=metadata)


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name, each of a file beside the index."""
    if path.stat().st_size > MAX_HEADER:
        raise unreadable(path, "a JSON text larger than any index of shards")
    try:
        place = json.loads(path.read_bytes())["weight_map"]
        texts = all(isinstance(text, str) for item in place.items() for text in item)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, "a JSON text without the weight_map of an index") from error
    if not place or not texts:
        raise unreadable(path, "an index of shards whose weight_map names none")
    outside = sorted(
        {n for n in place.values() if Path(n).name != n or "\\" in n or n in ("", "..")}
    )
    if outside:
        raise UnreadableWeights(
            f"{path} leads out of its folder ({shown(outside)}); shards lie beside their index"
        )
    return dict(place)
