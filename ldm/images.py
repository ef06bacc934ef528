"""How do tensors become pictures that people look at, and the other way round?

Pixels are float [B,3,H,W] in [-1,1].
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 1 << 26  # 8192 x 8192: a decompression bomb is refused before it is decoded
VISIBLE_PX = 128  # pictures with a smaller side are enlarged in grids
_MARGIN_PX = 8
_FONT_PX = 14
_MAX_CAPTION_LINES = 6
_WINDOWS_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def to_uint8(pixels: Tensor) -> Tensor:
    """float [...,3,H,W] in [-1,1] -> uint8 [...,H,W,3] on the CPU; values outside are clamped."""
    if not pixels.is_floating_point() or pixels.ndim < 3 or pixels.shape[-3] != 3:
        got = f"{tuple(pixels.shape)} {pixels.dtype}"
        raise ValueError(f"pixels are {got}; give floats [...,3,H,W] in [-1,1]")
    values = pixels.detach().float().cpu().movedim(-3, -1)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("pixels hold NaN or infinity; look for the first part that gives them")
    return ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(values: Tensor) -> Tensor:
    """uint8 [...,H,W,3] -> float32 [...,3,H,W] in [-1,1]."""
    if values.dtype != torch.uint8 or values.ndim < 3 or values.shape[-1] != 3:
        raise ValueError(f"values are {tuple(values.shape)} {values.dtype}; give uint8 [...,H,W,3]")
    return values.movedim(-1, -3).float() / 127.5 - 1


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """float [B,3,H,W] in [-1,1] -> one RGB picture a row."""
    if pixels.ndim != 4:
        raise ValueError(f"pixels are {tuple(pixels.shape)}; give [B,3,H,W]")
    return [Image.fromarray(picture) for picture in to_uint8(pixels).numpy()]


def from_pil(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size -> float32 [B,3,H,W] in [-1,1]; transparency is laid over white."""
    if not pictures:
        raise ValueError("no pictures given")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"pictures have sizes {sorted(sizes)}; resize them to one size first")
    stacked = np.stack([np.asarray(flattened(picture)) for picture in pictures])
    return from_uint8(torch.from_numpy(stacked))


def flattened(picture: Image.Image) -> Image.Image:
    """The picture as RGB, with white where it is transparent."""
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16") or picture.mode == "I":  # convert("RGB") would clip at 255
        wide = np.asarray(picture).astype(np.float64) / 257.0
        picture = Image.fromarray(wide.round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def read_picture(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A JPEG, PNG or WebP file as an upright RGB picture; transparency is laid over white.

    Raises FileNotFoundError, and ValueError for what is too large, animated or no picture.
    """
    return flattened(_opened(Path(path), max_pixels))


def read_mask(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The file of a mask as a grey picture. Raises as `read_picture`, and for transparency."""
    picture = _opened(Path(path), max_pixels)
    if picture.has_transparency_data:
        raise ValueError(
            f"{path} has transparency, which may mean either; give a mask of black (kept) and "
            "white (drawn anew)"
        )
    return flattened(picture).convert("L")


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at (height, width) px: its middle, cut to the shape, then resized.

    Lanczos, or for grey pictures (masks) the nearest pixel, which keeps edges where they are.
    """
    height, width = size
    grey = picture.mode == "L"
    method = Image.Resampling.NEAREST if grey else Image.Resampling.LANCZOS
    return ImageOps.fit(picture, (width, height), method=method)


def grid(
    pictures: Sequence[Image.Image] | Tensor,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
) -> Image.Image:
    """One picture of many, row by row, each with its caption wrapped below it.

    Small pictures are enlarged by a whole factor without smoothing, so that 32 px can be judged.
    """
    images = to_pil(pictures) if isinstance(pictures, Tensor) else [flattened(p) for p in pictures]
    texts = [""] * len(images) if captions is None else list(captions)
    if not images or len(texts) != len(images) or (columns is not None and columns < 1):
        raise ValueError(
            f"{len(images)} pictures, {len(texts)} captions, columns={columns}: "
            "give at least one picture, one caption a picture and one column or more"
        )
    images = [enlarged(image) for image in images]
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    per_row = min(columns or max(1, round(len(images) ** 0.5)), len(images))
    font = ImageFont.load_default(size=_FONT_PX)
    wrapped = [_wrapped(text, font, width) for text in texts]
    rows = [range(i, min(i + per_row, len(images))) for i in range(0, len(images), per_row)]
    line_px = _FONT_PX + 4
    text_px = [line_px * max(len(wrapped[i]) for i in row) for row in rows]
    step = width + _MARGIN_PX
    canvas = Image.new(
        "RGB",
        (per_row * step + _MARGIN_PX, sum(text_px) + len(rows) * (height + 2 * _MARGIN_PX)),
        (242, 242, 242),
    )
    draw = ImageDraw.Draw(canvas)
    top = _MARGIN_PX
    for row, below in zip(rows, text_px, strict=True):
        for column, i in enumerate(row):
            left = _MARGIN_PX + column * step
            canvas.paste(images[i], (left, top))
            for number, line in enumerate(wrapped[i]):
                at = (left, top + height + 2 + number * line_px)
                draw.text(at, line, fill=(20, 20, 20), font=font)
        top += height + below + 2 * _MARGIN_PX
    return canvas


def safe_name(text: str, *, max_bytes: int = 80) -> str:
    """A file name that says what `text` says: no path characters, never empty, never a dot file.

    Letters of all scripts stay. A text that had to be cut ends in a hash, so that two long prompts
    with the same beginning get two names.
    """
    plain = unicodedata.normalize("NFC", text)
    words = re.sub(r"[^\w.,()+-]+", "_", plain).strip("_. ")
    if not words or _WINDOWS_NAMES.fullmatch(words):
        words = f"image_{words}" if words else "image"
    if len(words.encode()) <= max_bytes:
        return words
    digest = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    cut = words.encode()[: max_bytes - len(digest) - 1].decode(errors="ignore").rstrip("_. ")
    return f"{cut}-{digest}"


def _opened(path: Path, max_pixels: int) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ours is the limit that counts, and it is an error
            with Image.open(path, formats=FORMATS) as picture:
                problem = _problem(picture, max_pixels)
                if problem is None:
                    return ImageOps.exif_transpose(picture)  # decodes: a cut-off file raises
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError, …
        raise ValueError(
            f"{path} cannot be read as a picture ({type(error).__name__}); give a whole "
            f"{', '.join(FORMATS)} file"
        ) from None
    raise ValueError(f"{path} {problem}")


def _problem(picture: Image.Image, max_pixels: int) -> str | None:
    width, height = picture.size
    if width * height > max_pixels:
        return f"is {width}x{height} px, above {max_pixels:,} pixels; make it smaller"
    frames = getattr(picture, "n_frames", 1)  # single-frame formats have no such attribute
    return f"is animated ({frames} frames); save the one you mean" if frames > 1 else None


def enlarged(image: Image.Image) -> Image.Image:
    """A small picture by a whole factor, without smoothing; others stay as they are."""
    factor = max(1, -(-VISIBLE_PX // min(image.size)) if max(image.size) < VISIBLE_PX else 1)
    size = (image.width * factor, image.height * factor)
    return image if factor == 1 else image.resize(size, Image.Resampling.NEAREST)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines not wider than `width`; words that are too long are broken; the rest becomes …"""
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width and len(line) > 1:
            fits = _fitting(line, font, width)
            lines.append(line[:fits])
            line = line[fits:]
    if line:
        lines.append(line)
    if len(lines) > _MAX_CAPTION_LINES:
        last = lines[_MAX_CAPTION_LINES - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines = [*lines[: _MAX_CAPTION_LINES - 1], f"{last}…"]
    return lines


def _fitting(word: str, font: Font, width: int) -> int:
    """How many letters fit into the width: at least one."""
    count = 1
    while count < len(word) and font.getlength(word[: count + 1]) <= width:
        count += 1
    return count
