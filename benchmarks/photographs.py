"""How does one make pictures that decode like photographs, where there are none at hand?

Noise whose amplitudes fall with a power of the frequency, brightness stronger than colour. The
power is such that a 512 px JPEG of quality 90 has 80 KB, as photographs have (docs/scaling.md):
decoding takes its time for the bytes, resizing for the pixels.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

POWER = 1.5
DEVIATIONS = (55, 18, 18)  # of brightness and the two colour differences, of 255
QUALITY = 90
A_SHARD = 128


def photograph(number: int, size: int) -> bytes:
    """A JPEG with 4:2:0 subsampling; another number is another picture."""
    draw = np.random.default_rng(number)
    frequency = size * np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    planes = []
    for deviation in DEVIATIONS:
        wave = draw.standard_normal((2, *frequency.shape)) / frequency**POWER
        plane = np.fft.irfft2(wave[0] + 1j * wave[1], (size, size))
        planes.append(128 + deviation * plane / plane.std())
    pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels, "YCbCr").convert("RGB")
    image.save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def write_photographs(folder: Path, count: int, size: int) -> list[str]:
    """Shards of `count` generated pictures with captions; the paths."""
    folder.mkdir(parents=True)
    paths = []
    for start in range(0, count, A_SHARD):
        paths.append(str(folder / f"{start:06d}.tar"))
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(start, min(start + A_SHARD, count)):
                caption = f"a photograph of nothing, number {number}".encode()
                for ext, data in (("jpg", photograph(number, size)), ("txt", caption)):
                    info = tarfile.TarInfo(f"{number:06d}.{ext}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return paths
