"""How is a picture kept inside a page, once, however often it is shown?"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ldm.images import flattened, read_picture

Picture = Image.Image | Path | str
EXACT = 256 * 256  # pictures of up to so many pixels are kept bit for bit (PNG)
MAX = 1024 * 1024  # larger ones are made smaller: a page of many must still open
MAX_SIDE_PX = 16_000  # WebP has no longer ones
TINY_PX = 128  # where the short side is below it, pixels are shown as squares
QUALITY = 90  # of WebP


@dataclass(frozen=True)
class Shown:
    """A picture in the page. source: a data URI; None where `key` was shown before."""

    key: str
    source: str | None
    width: int
    height: int

    @property
    def tiny(self) -> bool:
        return min(self.width, self.height) < TINY_PX


@dataclass
class Embedded:
    """The pictures of one page."""

    known: set[str] = field(default_factory=set)

    def add(self, picture: Picture) -> Shown:
        """Puts a picture in. Raises FileNotFoundError, ValueError for a file that is none."""
        image = flattened(picture) if isinstance(picture, Image.Image) else read_picture(picture)
        area, side = image.width * image.height, max(image.size)
        scale = min(1.0, (MAX / area) ** 0.5, MAX_SIDE_PX / side)
        if scale < 1:
            smaller = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
            image = image.resize(smaller, Image.Resampling.LANCZOS)
        digest = hashlib.blake2b(image.tobytes(), digest_size=9, key=repr(image.size).encode())
        key = f"p.{digest.hexdigest()}"
        source = None if key in self.known else _data_uri(image)
        self.known.add(key)
        return Shown(key, source, image.width, image.height)


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    kind = "png" if image.width * image.height <= EXACT else "webp"
    bare = Image.frombytes("RGB", image.size, image.tobytes())  # no text chunks, no EXIF
    if kind == "png":
        bare.save(buffer, format="PNG", optimize=True)
    else:
        bare.save(buffer, format="WEBP", quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
