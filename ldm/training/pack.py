"""How does the embedded stack come out of finished runs?

clip/                   both towers (fp16), tokenizer; the text half conditions the UNet
frozen/vae.safetensors  the VAE (fp16), latent statistics folded into its 1x1 convolutions
card.json, model.safetensors   the trained UNet (fp16, EMA)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ldm import rng
from ldm.data.reader import Reader
from ldm.data.shards import read
from ldm.data.source import Data
from ldm.io.configs import vae_config
from ldm.io.frozen import VAE_FILE, load_codec, vae_card, write_tensors
from ldm.io.load import find, save_export
from ldm.io.source import copy_into
from ldm.models.codec import Codec
from ldm.models.text.clip import clip_text
from ldm.models.text.tiny_clip import ClipPair
from ldm.models.text.tiny_tokenizer import train_tokenizer
from ldm.models.vae import AutoencoderKL, build_vae, fold_normalisation, sample_moments

log = logging.getLogger(__name__)


def pack_tokenizer(data: Data, out: Path, vocab_size: int) -> None:
    """A vocabulary learnt from the captions of the training samples."""
    tokenizer = train_tokenizer(captions(data), out / "clip", vocab_size=vocab_size)
    log.info("tokenizer: %d tokens in %s", len(tokenizer), out / "clip")


def pack_clip(pair: ClipPair, run: Path, out: Path) -> None:
    """Both towers of a clip run."""
    found = find(run, weights="ema")
    copy_into(pair, found.tensors, str(run))
    pair.export(out / "clip")


def pack_vae(data: Data, run: Path, out: Path, count: int = 2048) -> Codec:
    """The VAE of a run, normalised so that its latents have mean 0 and deviation 1 a channel."""
    found = find(run, weights="ema")
    vae = build_vae(vae_config(found.card["vae"]["config"]))
    assert isinstance(vae, AutoencoderKL)
    copy_into(vae, found.tensors, str(run))
    mean, std = latent_statistics(vae, data, count)
    fold_normalisation(vae, mean, std)
    log.info("latents had mean %s, deviation %s", mean.tolist(), std.tolist())
    write_tensors(out / "frozen" / VAE_FILE, vae.state_dict(), torch.float16)
    return Codec(vae, vae.config.scaling_factor)


def pack_unet(run: Path, out: Path) -> None:
    """The UNet of a run, if it was trained on the very VAE and CLIP that are packed."""
    found = find(run, weights="ema")
    if found.beside:
        raise ValueError(f"{run} has trained more than its UNet; merge it first (convert.py)")
    card = {**found.card, "frozen": {"vae": f"frozen/{VAE_FILE}", "text": "clip"}}
    codec = load_codec(card, out, dtype=torch.float32)  # raises when it is another VAE
    text = clip_text(source="tiny")
    if text.hash() != card["text"]["hash"]:
        raise ValueError(f"{run} was trained with another text encoder than {out / 'clip'}")
    card["vae"] = vae_card(codec, "tiny")
    save_export(out, card, found.tensors, weights="ema", dtype=torch.float16)


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, data: Data, count: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] of sampled, unscaled latents of the first `count` samples."""
    assert isinstance(data.train, Reader)
    drawn = []
    for start in range(0, count, 64):
        index = torch.arange(start, start + 64)
        moments = vae.eval().encode(data.train.batch(index).pixels)
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        drawn.append(sample_moments(moments, rng.normal(0, "statistics", index, shape)))
    z = torch.cat(drawn).transpose(0, 1).flatten(1).double()  # [C, n]
    return z.mean(1).float(), z.std(1).float()


def captions(data: Data) -> Iterator[str]:
    """Every caption of the training samples, without decoding pictures."""
    assert isinstance(data.train, Reader)
    index = data.train.index
    for shard, size in enumerate(index.sizes):
        for n in range(size):
            yield read(index, shard, n, ("txt",))["txt"].decode("utf-8").strip()
