"""How are the frozen encoders kept beside a run, and found again?

    frozen/vae.safetensors    our VAE's weights under diffusers' names
    frozen/text/              the text encoder: config, safetensors, tokenizer

The card says what they are and holds their hashes, so a run folder is complete by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.io.checkpoint import tensors_hash
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.models.text.folder import load_text
from ldm.models.vae import Autoencoder, IdentityVAEConfig, VAEConfig, build_vae

VAE_FILE = "vae.safetensors"
TEXT_FOLDER = "text"
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
ASSETS = Path(__file__).parents[1] / "assets" / "tiny"


def save_frozen(folder: Path, codec: Codec, text: TextEncoder) -> None:
    """Writes both into `folder` (a run's frozen/), unless they are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / VAE_FILE
    if not path.exists():
        write_tensors(path, dict(codec.vae.state_dict()))
    if not (folder / TEXT_FOLDER).exists():
        text.save(folder / TEXT_FOLDER)


def vae_card(codec: Codec, source: str | None) -> dict[str, Any]:
    """What a card says about the VAE."""
    return {
        "config": plain(asdict(codec.vae.config)),
        "source": source,
        "hash": tensors_hash(dict(codec.vae.state_dict())),
    }


def load_codec(card: Mapping[str, Any], folder: Path, *, dtype: torch.dtype) -> Codec:
    """The VAE of a card from the folder that holds frozen/. Raises when bytes and card differ."""
    vae = build_vae(vae_config(card["vae"]["config"]))
    path = inside(folder, card["frozen"]["vae"])
    load_into(vae, read_tensors(path), str(path))
    found = tensors_hash(dict(vae.state_dict()))
    if found != card["vae"]["hash"]:
        raise ValueError(
            f"{path} is another VAE than the one trained with: {found[:12]}… is not "
            f"{card['vae']['hash'][:12]}…"
        )
    return frozen_codec(vae, dtype)


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
    """A VAE from `tiny`, a .safetensors file, or a folder that holds one (vae/ inside, or itself).

    Raises FileNotFoundError naming what to put where, ValueError for other weights.
    """
    vae = build_vae(config)
    if isinstance(config, IdentityVAEConfig):
        return vae
    if source is None:
        raise FileNotFoundError(
            "models.vae_weights=null; the frozen VAE needs weights: give tiny, "
            "a .safetensors file or a folder"
        )
    path = _vae_file(source)
    load_into(vae, own_vae_names(read_tensors(path)), str(path))
    return vae


def own_vae_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors under today's names: older files call the attention's parts otherwise, and
    store them as 1x1 convolutions."""
    renamed = {}
    for name, value in tensors.items():
        for old, new in OLD_ATTENTION.items():
            name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
        if ".attentions.0.to_" in name and value.ndim == 4:
            value = value[:, :, 0, 0]
        renamed[name] = value
    return renamed


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Strict: raises ValueError listing missing, unexpected and differently shaped keys."""
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    extra = sorted(tensors.keys() - own.keys())
    shapes = [
        f"{k}: file {tuple(tensors[k].shape)}, model {tuple(own[k].shape)}"
        for k in sorted(own.keys() & tensors.keys())
        if own[k].shape != tensors[k].shape
    ]
    if missing or extra or shapes:
        raise ValueError(
            f"{where} holds another architecture: {len(missing)} keys missing {missing[:3]}, "
            f"{len(extra)} unexpected {extra[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )
    module.load_state_dict(tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises FileNotFoundError, or ValueError that says what the file is."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the weights belong there")
    try:
        return load_file(path)
    except Exception as error:
        start = path.read_bytes()[:40]
        raise ValueError(f"{path} is not a safetensors file (starts {start!r}): {error}") from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> None:
    """Atomically: a temporary file beside the target, renamed."""
    ready = {k: v.detach().to("cpu", dtype or v.dtype).contiguous() for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    save_file(ready, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    temporary.replace(path)


def inside(folder: Path, relative: str) -> Path:
    """A path of a card, which must stay inside its folder. Raises ValueError otherwise."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{relative!r} in the card of {folder} leads out of the folder")
    return path


def vae_config(fields: Mapping[str, Any]) -> VAEConfig | IdentityVAEConfig:
    """The config that `asdict` wrote; lists become tuples again."""
    if "block_out_channels" not in fields:
        return IdentityVAEConfig(**fields)
    return VAEConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def plain(value: Any) -> Any:
    """Tuples as lists, so that a card is equal before and after JSON."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _vae_file(source: str) -> Path:
    if source == "tiny":
        return ASSETS / "frozen" / VAE_FILE
    path = Path(source)
    if path.is_dir():
        names = ("vae", "."), ("diffusion_pytorch_model.safetensors", VAE_FILE)
        found = [path / sub / name for sub in names[0] for name in names[1]]
        found += [path / "frozen" / VAE_FILE]
        path = next((f for f in found if f.is_file()), found[0])
    return path
