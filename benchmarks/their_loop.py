"""What does diffusers' text-to-image training do, step by step? Run by whole_run.py.

    python benchmarks/their_loop.py --model FOLDER --data FOLDER --out FOLDER --steps N

The procedure of their example script in our own words, so that the comparison needs no download:
pictures decoded, resized, cropped and normalised at every visit, VAE and text encoder in every
step, their UNet, AdamW, scheduler, clipping and EMA with their defaults, TensorBoard, a pipeline
folder at the end. `whole_run.py --script` runs the script itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from transformers import CLIPTextModel, CLIPTokenizer


class Pictures(Dataset[tuple[Tensor, str]]):
    """A folder with metadata.jsonl (`file_name`, `text`), as squares in [-1,1]."""

    def __init__(self, folder: Path, size_px: int) -> None:
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]
        self.folder, self.size_px = folder, size_px

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Tensor, str]:
        row, size = self.rows[number], self.size_px
        with Image.open(self.folder / row["file_name"]) as file:
            image = file.convert("RGB")
        short = min(image.size)
        if short != size:
            width, height = (side * size // short for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (round((side - size) / 2) for side in image.size)
        image = image.crop((left, top, left + size, top + size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div_(255).sub_(0.5).div_(0.5), row["text"]


class Captions:
    """Joins samples to a batch: pixels [B,3,H,W], ids [B,L]."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: list[tuple[Tensor, str]]) -> tuple[Tensor, Tensor]:
        pixels, captions = zip(*samples, strict=True)
        ids = self.tokenizer(
            list(captions),
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return torch.stack(pixels), ids


def train(args: argparse.Namespace) -> None:
    """The run, from folder to folder."""
    torch.manual_seed(0)
    bf16 = args.precision == "bf16"
    frozen = torch.bfloat16 if bf16 else torch.float32
    schedule = DDPMScheduler.from_pretrained(args.model, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(args.model, subfolder="tokenizer")
    text = CLIPTextModel.from_pretrained(args.model, subfolder="text_encoder").to(frozen)
    vae: Any = AutoencoderKL.from_pretrained(args.model, subfolder="vae").to(frozen)
    unet: Any = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet").train()
    for part in (text, vae):
        part.requires_grad_(False)
    copy = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet")
    ema = EMAModel(
        copy.parameters(),
        model_cls=UNet2DConditionModel,
        model_config=copy.config,
        foreach=args.foreach,
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=1e-2)
    rates = get_scheduler("constant", optimizer=optimizer)
    loader = DataLoader(
        Pictures(args.data, args.size),
        batch_size=args.batch,
        shuffle=True,
        collate_fn=Captions(tokenizer),
        num_workers=args.workers,
    )
    writer = SummaryWriter(args.out / "logs")
    step = 0
    while step < args.steps:
        for pixels, ids in loader:
            with torch.no_grad():
                x0 = vae.encode(pixels.to(frozen)).latent_dist.sample() * vae.config.scaling_factor
                context = text(ids, return_dict=False)[0]
            eps = torch.randn_like(x0)
            t = torch.randint(0, schedule.config.num_train_timesteps, (len(x0),))
            noisy = schedule.add_noise(x0, eps, t)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = unet(noisy, t, context, return_dict=False)[0]
            loss = F.mse_loss(out.float(), eps.float())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            step += 1
            writer.add_scalar("train_loss", loss.item(), step)
            if step == args.steps:
                break
    ema.copy_to(unet.parameters())
    pipeline = StableDiffusionPipeline.from_pretrained(
        args.model, unet=unet, vae=vae, text_encoder=text
    )
    pipeline.save_pretrained(args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="px")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--foreach", action="store_true", help="EMA as one call over all weights")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
