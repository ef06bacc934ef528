"""What has the fine-tune of a VAE changed, on pictures that it has not seen?

    python docs/finetuning/vae_pictures.py tiny runs/vae_tiny_finetune data/emoji64/val out.png

Of both autoencoders: whether the latents are the same bit for bit, and the PSNR of what the middle
of the posterior is decoded to, over all pictures of the shards. The rows of the picture: what went
in, before, after, and both differences to what went in, three times as strong; pictures whose
licence lets them be shown elsewhere.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor

from ldm.images import from_pil, to_pil
from ldm.io.frozen import load_vae_weights
from ldm.models.vae import Autoencoder, VAEConfig

TINY = VAEConfig(  # models/vae=tiny
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    norm_num_groups=8,
    mid_block_add_attention=False,
    scaling_factor=1.0,
)
SHOWN = ("Apache-2.0", "MIT", "CC0-1.0")
COLUMNS, ZOOM, LABEL_PX, STRENGTH = 8, 2, 78, 3
ROWS = ("original", "before", "after", "|before - o|", "|after - o|")


def pictures(shards: Path) -> tuple[Tensor, list[str]]:
    """Every picture of the shards, [N,3,H,W], and its licence."""
    found, licences = [], []
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.endswith(".png"):
                    found.append(Image.open(io.BytesIO(file.read())).convert("RGB"))
                elif file is not None and member.name.endswith(".json"):
                    licences.append(json.load(file)["license"])
    return from_pil(found), licences


@torch.no_grad()
def coded(vae: Autoencoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Moments [N,2C,h,w], and what their means are decoded to, [N,3,H,W]."""
    moments = torch.cat([vae.encode(part) for part in pixels.split(32)])
    means = moments.chunk(2, dim=1)[0]
    return moments, torch.cat([vae.decode(part) for part in means.split(32)])


def psnr(one: Tensor, other: Tensor) -> float:
    """Mean over pictures, dB; values are clamped as in a file."""
    error = (one.clamp(-1, 1) - other).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / error)).mean())


def sheet(rows: list[Tensor]) -> Image.Image:
    """Rows of pictures [N,3,H,W] with their names, enlarged."""
    side = rows[0].shape[-1] * ZOOM
    page = Image.new("RGB", (LABEL_PX + COLUMNS * side, len(rows) * side), "white")
    for y, (name, row) in enumerate(zip(ROWS, rows, strict=True)):
        ImageDraw.Draw(page).text((4, y * side + side // 2), name, fill="black")
        for x, picture in enumerate(to_pil(row)):
            large = picture.resize((side, side), Image.Resampling.NEAREST)
            page.paste(large, (LABEL_PX + x * side, y * side))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("before", "after", "shards", "out"):
        parser.add_argument(name)
    given = parser.parse_args()
    pixels, licences = pictures(Path(given.shards))
    first, second = (coded(load_vae_weights(TINY, x), pixels) for x in (given.before, given.after))
    same = torch.equal(first[0], second[0])
    Console().print(
        f"{len(pixels)} pictures; latents {'the same, bit for bit' if same else 'differ'}; "
        f"PSNR {psnr(first[1], pixels):.2f} dB before, {psnr(second[1], pixels):.2f} dB after"
    )
    free = [row for row, licence in enumerate(licences) if licence in SHOWN]
    chosen = free[:: len(free) // COLUMNS][:COLUMNS]
    shown, before, after = pixels[chosen], first[1][chosen], second[1][chosen]
    strong = [1 - STRENGTH * (decoded - shown).abs() for decoded in (before, after)]
    sheet([shown, before, after, *strong]).quantize(128).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
