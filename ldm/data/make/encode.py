"""Which bytes of a picture go into a shard?"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from ldm.images import flattened

KEEP = "keep"
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_ALIASES = {"MPO": "JPEG"}  # a JPEG with more pictures behind it, as phones write them
_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


class UnusablePicture(ValueError):
    """The bytes are no picture that can be read to its end, or it is too small."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How pictures are stored.

    format: keep (the bytes of PNG, JPEG and WebP files as they are, everything else as PNG), png,
    jpeg or webp; a file that has the format and size already is never encoded again.
    max_side_px: a longer side is scaled down to this. min_side_px: pictures with a shorter side are
    left out.
    """

    format: str = KEEP
    quality: int = 92
    max_side_px: int | None = None
    min_side_px: int = 1

    def __post_init__(self) -> None:
        problems = []
        if self.format not in (KEEP, *FORMATS):
            problems.append(f"format={self.format!r}; use {', '.join((KEEP, *FORMATS))}")
        if not 1 <= self.quality <= 100:
            problems.append(f"quality={self.quality}; use 1 … 100")
        if self.max_side_px is not None and self.max_side_px < max(1, self.min_side_px):
            problems.append(
                f"max_side_px={self.max_side_px} is below min_side_px={self.min_side_px}; "
                "use a larger one, or null for no limit"
            )
        if problems:
            raise ValueError("picture encoding: " + "; ".join(problems))

    def __call__(self, image: bytes | Image.Image) -> tuple[str, bytes, tuple[int, int]]:
        """The member's extension, its bytes, and (width, height) as people see the picture."""
        if isinstance(image, Image.Image):
            picture, original = image, None
        else:
            picture, original = _opened(image), image
        if min(picture.size) < self.min_side_px:
            width, height = picture.size
            raise UnusablePicture(
                f"{width}x{height} px, smaller than min_side_px={self.min_side_px}"
            )
        stored = _ALIASES.get(picture.format or "", picture.format or "")
        too_long = self.max_side_px is not None and max(picture.size) > self.max_side_px
        wanted = FORMATS.get(self.format, stored if stored in _EXTENSIONS else "PNG")
        if original is not None and stored == wanted and not too_long:
            return _EXTENSIONS[stored], original, _seen_size(picture)
        drawn = flattened(ImageOps.exif_transpose(picture))
        if self.max_side_px is not None and too_long:
            drawn.thumbnail((self.max_side_px, self.max_side_px), Image.Resampling.LANCZOS)
        return _EXTENSIONS[wanted], self._encoded(drawn, wanted), drawn.size

    def _encoded(self, picture: Image.Image, wanted: str) -> bytes:
        buffer = io.BytesIO()
        if wanted == "PNG":
            picture.save(buffer, wanted)
        else:
            picture.save(buffer, wanted, quality=self.quality)
        return buffer.getvalue()


def _opened(data: bytes) -> Image.Image:
    """Decoded to the end: a file that is cut off is found here and not in the training run."""
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except UnidentifiedImageError:  # its text holds an address, different each time
        raise UnusablePicture("cannot be read: not a picture, or not of a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnusablePicture(f"cannot be read: {error}") from error
    return picture


def _seen_size(picture: Image.Image) -> tuple[int, int]:
    turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation
    return (picture.height, picture.width) if turned else picture.size
