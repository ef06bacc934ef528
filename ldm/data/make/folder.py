"""Which picture files of a folder go into shards?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ldm import rng
from ldm.data.make import captions
from ldm.data.make.sample import LeftOut, Plain, Sample

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class FolderSource:
    """All pictures below `root`, in an order that depends on their names and the seed only.

    Captions: <name>.txt or <name>.json beside the picture, or `mapping`, a jsonl file with
    `file_key` (path relative to root) and `caption_key`. A picture without one is left out unless
    there is a `default_caption`. Files are only read.
    """

    def __init__(
        self,
        *,
        root: str | Path | None,
        mapping: str | Path | None = None,
        file_key: str = "file_name",
        caption_key: str = "caption",
        default_caption: str | None = None,
        license: str | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        if root is None:
            raise ValueError("data.root is not given; write data.root=FOLDER, the pictures' folder")
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"root={self.root} is not a folder; give the folder of the pictures")
        self.file_key, self.caption_key = file_key, caption_key
        self.default_caption, self.license = default_caption, license
        self.shuffle, self.seed = shuffle, seed
        self.mapping = (
            None
            if mapping is None
            else captions.mapping(Path(mapping), file_key=file_key, caption_key=caption_key)
        )
        names = sorted(self.mapping) if self.mapping is not None else list(_pictures(self.root))
        if not names:
            raise ValueError(
                f"no pictures in {self.root}; looked for {', '.join(sorted(EXTENSIONS))}"
            )
        order = rng.permutation(seed, "make/folder", 0, len(names)) if shuffle else None
        self.names = names if order is None else [names[i] for i in order.tolist()]

    def __len__(self) -> int:
        return len(self.names)

    def items(self, start: int = 0) -> Iterator[Sample | LeftOut]:
        """One item a picture file, or a line of the mapping."""
        for name in self.names[start:]:
            try:
                yield self._sample(name)
            except (captions.NoCaption, OSError) as error:
                yield LeftOut(name, str(error))

    def spec(self) -> dict[str, Plain]:
        return {
            "source": "folder",
            "root": str(self.root),
            "names": _fingerprint(self.names),
            "caption_key": self.caption_key,
            "mapping": self.mapping is not None,
            "default_caption": self.default_caption,
            "license": self.license,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }

    def _sample(self, name: str) -> Sample:
        # names of the mapping are someone's data; those of the walk are what the user has put there
        path = self.root / name if self.mapping is None else inside(self.root, name)
        found = self._caption(name, path)
        meta: dict[str, Plain] = {**found.meta, "source": name}
        if self.license is not None:
            meta.setdefault("license", self.license)
        return Sample(name, path.read_bytes(), found.text, meta)

    def _caption(self, name: str, path: Path) -> captions.Caption:
        try:
            if self.mapping is not None:
                return self.mapping[name]
            return captions.beside(path, caption_key=self.caption_key)
        except captions.NoCaption:
            if self.default_caption is None:
                raise
            return captions.Caption(self.default_caption, {})


def inside(root: Path, name: str) -> Path:
    """The file `name` below `root`; a name that leads out of it is refused."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise PermissionError(f"{name!r} leads out of {root}; it is not read")
    if not path.is_file():
        raise FileNotFoundError(f"{name!r} is not a file in {root}")
    return path


def _pictures(root: Path) -> Iterator[str]:
    """Names relative to root with forward slashes, sorted; hidden files and folders are skipped."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith(".")
        ]
    return iter(sorted(found))


def _fingerprint(names: list[str]) -> str:
    """Changes when a picture is added or goes: an interrupted run would mix up the numbers."""
    return f"{len(names)}-{rng.fold(0, chr(0).join(names)):016x}"
