"""How are the frozen encoders kept beside a run, and found again?

    frozen/vae.safetensors    our VAE's weights under diffusers' names
    frozen/text/              the text encoder: config, safetensors, tokenizer
    frozen/unet.safetensors   the UNet, where a run trains adapters or the text encoder alone

The card says what they are and holds their hashes, so a run folder is complete by itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.io.checkpoint import tensors_hash
from ldm.io.configs import plain, vae_config
from ldm.io.reading import TensorFile, is_document, open_tensors
from ldm.io.source import fill
from ldm.io.vae_names import vae_under_own_names
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.models.text.folder import load_text
from ldm.models.vae import Autoencoder, IdentityVAEConfig, VAEConfig, build_vae

VAE_FILE = "vae.safetensors"
TEXT_FOLDER = "text"
UNET_FILE = "unet.safetensors"
ASSETS = Path(__file__).parents[1] / "assets" / "tiny"


def save_frozen(
    folder: Path, codec: Codec, text: TextEncoder, unet: nn.Module | None = None
) -> None:
    """Writes them into `folder` (a run's frozen/), unless they are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / VAE_FILE
    if not path.exists():
        write_tensors(path, dict(codec.vae.state_dict()))
    if unet is not None and not (folder / UNET_FILE).exists():
        write_tensors(folder / UNET_FILE, dict(unet.state_dict()))
    if not (folder / TEXT_FOLDER).exists():
        temporary = folder / f".tmp-{TEXT_FOLDER}"  # what a killed process left half-written
        shutil.rmtree(temporary, ignore_errors=True)
        text.save(temporary)
        temporary.replace(folder / TEXT_FOLDER)


def vae_card(codec: Codec, source: str | None) -> dict[str, Any]:
    """What a card says about the VAE."""
    return {
        "config": plain(asdict(codec.vae.config)),
        "source": source,
        "hash": tensors_hash(dict(codec.vae.state_dict())),
    }


def frozen_unet(card: Mapping[str, Any], folder: Path) -> TensorFile | None:
    """The UNet that a run did not train, not read; None where it did. Raises ValueError."""
    relative = card.get("frozen", {}).get("unet")
    if relative is None:
        return None
    file = open_tensors(inside(folder, relative))
    found = tensors_hash(file)
    if found != card["unet_hash"]:
        raise ValueError(
            f"{file.path} is another UNet than the one trained with: {found[:12]}… is not "
            f"{card['unet_hash'][:12]}…"
        )
    return file


def load_codec(card: Mapping[str, Any], folder: Path, *, dtype: torch.dtype) -> Codec:
    """The VAE of a card from the folder that holds frozen/. Raises when bytes and card differ."""
    path = inside(folder, card["frozen"]["vae"])
    with torch.device("meta"):
        vae = build_vae(vae_config(card["vae"]["config"]))
    if vae_has_weights(card):
        fill(vae, open_tensors(path), str(path), torch.float32)
    found = tensors_hash(dict(vae.state_dict()))
    if found != card["vae"]["hash"]:
        raise ValueError(
            f"{path} is another VAE than the one trained with: {found[:12]}… is not "
            f"{card['vae']['hash'][:12]}…"
        )
    return frozen_codec(vae, dtype)


def vae_has_weights(card: Mapping[str, Any]) -> bool:
    """Not the one for pixels, nor one that is not here."""
    return "block_out_channels" in card["vae"]["config"]


def frozen_codec(vae: Autoencoder, dtype: torch.dtype) -> Codec:
    """The VAE frozen, in eval and in `dtype`, with the scale of its config."""
    return Codec(vae.to(dtype).eval().requires_grad_(False), vae.config.scaling_factor)


def load_text_encoder(card: Mapping[str, Any], folder: Path) -> TextEncoder:
    """The text encoder of a card from the folder that holds frozen/."""
    text = load_text(inside(folder, card["frozen"]["text"]), card["text"])
    if text.hash() != card["text"]["hash"]:
        raise ValueError(f"{folder}: the text encoder is not the one that the card names")
    return text


def load_vae_weights(config: VAEConfig | IdentityVAEConfig, source: str | None) -> Autoencoder:
    """A VAE from `tiny`, a file with one (alone or in a whole model) or a folder with one (a run's,
    diffusers', or itself).

    Raises FileNotFoundError naming what to put where, ValueError for other weights.
    """
    if isinstance(config, IdentityVAEConfig):
        return build_vae(config)
    if source is None:
        raise FileNotFoundError(
            "models.vae_weights=null; the frozen VAE needs weights: give tiny, "
            "a .safetensors file or a folder"
        )
    file = open_tensors(_vae_file(source))
    with torch.device("meta"):
        vae = build_vae(config)
    fill(vae, vae_under_own_names(file, config), f"{file.path}: vae", torch.float32)
    return vae


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Atomically: a temporary file beside the target, renamed."""
    ready = {k: v.detach().to("cpu", dtype or v.dtype).contiguous() for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    save_file(ready, temporary, metadata={"format": "pt", **(metadata or {})})
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    temporary.replace(path)


def inside(folder: Path, relative: str) -> Path:
    """A path of a card, which must stay inside its folder. Raises ValueError otherwise."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{relative!r} in the card of {folder} leads out of the folder")
    return path


def _vae_file(source: str) -> Path:
    """Where in a source its VAE's tensors lie."""
    if source == "tiny":
        return ASSETS / "frozen" / VAE_FILE
    path = Path(source)
    if path.suffix == ".ckpt" and path.is_file() and is_document(path):
        path = path.resolve().parent.parent  # the run folder, whose frozen/ it is
    if not path.is_dir():
        return path
    names = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")
    inside = [f"{sub}{name}.safetensors" for sub in ("vae/", "vqvae/", "") for name in names]
    inside += [f"frozen/{VAE_FILE}", VAE_FILE, "vae/diffusion_pytorch_model.bin"]
    found = [path / name for name in inside]
    return next((file for file in found if file.is_file()), found[0])
