"""Where does the perceptual loss come from?

LPIPS (ldm/models/lpips.py) is read from local files, in the layouts in which it is published:

    net.slice1.0.weight …, lin0.model.1.weight …    the state_dict of lpips.LPIPS(net="vgg")
    loss.perceptual_loss.net.slice1.0.weight …      the same in an autoencoder's own checkpoint
    features.0.weight …                             torchvision's vgg16; the heads in a second file
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ldm.io.checkpoint import tensors_hash
from ldm.io.reading import TensorFile, open_tensors
from ldm.models.lpips import LPIPS

KEY = "training.vae_loss.perceptual_weights"
WHAT_TO_PUT_WHERE = (
    f"{KEY} names local files with VGG16's convolutions and the five LPIPS heads: one file with "
    'both, as torch.save(lpips.LPIPS(net="vgg").state_dict(), "lpips_vgg16.pth") writes it '
    "(package lpips), or a list of two, torchvision's vgg16-397923af.pth and weights/v0.1/vgg.pth "
    "of that package; training.vae_loss.perceptual=0 trains without"
)
_CONVOLUTION = re.compile(r"(?:net\.slice\d\.|features\.)(\d+\.(?:weight|bias))")
_HEAD = re.compile(r"lin(?:s\.)?(\d)\.model\.\d\.weight")
_PREFIX = "loss.perceptual_loss."


class Perceptual:
    """LPIPS, frozen; a plain object, so that its weights are in no checkpoint and no optimiser."""

    def __init__(self, network: LPIPS) -> None:
        self.network = network.eval().requires_grad_(False)

    def __call__(self, pixels: Tensor, decoded: Tensor) -> Tensor:
        """[B,3,H,W] twice, in [-1,1] -> distances [B] fp32, with the gradient of `decoded`."""
        return self.network(pixels, decoded)

    def hash(self) -> str:
        """Of the weights, for the card."""
        return tensors_hash(dict(self.network.state_dict()))

    def to(self, device: torch.device | str) -> Self:
        """Moves the network; the same object."""
        self.network.to(device)
        return self


def load_perceptual(files: str | Sequence[str] | None) -> Perceptual:
    """Raises FileNotFoundError or ValueError that says what to put where."""
    paths = [Path(file) for file in ([files] if isinstance(files, str) else files or [])]
    if not paths:
        raise ValueError(f"{KEY}=null, but perceptual is above 0. {WHAT_TO_PUT_WHERE}")
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)} does not exist. {WHAT_TO_PUT_WHERE}")
    found: dict[str, Tensor] = {}
    for path in paths:
        found |= _under_own_names(open_tensors(path))
    where = ", ".join(map(str, paths))
    with torch.device("meta"):
        names = list(LPIPS().state_dict())
    lacking = [name for name in names if name not in found]
    if lacking:
        raise ValueError(
            f"{where}: {len(lacking)} of {len(names)} tensors are not there, the first is "
            f"{lacking[0]}. {WHAT_TO_PUT_WHERE}"
        )
    heads = [found[name] for name in names if name.startswith("heads.")]
    network = LPIPS([head.shape[1] if head.ndim == 4 else 1 for head in heads])
    wrong = [
        f"{name} {tuple(found[name].shape)}, not {tuple(value.shape)}"
        for name, value in network.state_dict().items()
        if found[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f"{where} is not LPIPS on VGG16: {len(wrong)} tensors have another shape, the first is "
            f"{wrong[0]}. {WHAT_TO_PUT_WHERE}"
        )
    network.load_state_dict({name: found[name] for name in names})
    return Perceptual(network)


def _under_own_names(file: TensorFile) -> dict[str, Tensor]:
    """What belongs to LPIPS, fp32, under the names of ours; the rest of the file is not read."""
    ours: dict[str, str] = {}
    for name in file:
        plain = name.removeprefix(_PREFIX)
        if match := _CONVOLUTION.fullmatch(plain):
            ours[name] = f"features.{match[1]}"
        elif match := _HEAD.fullmatch(plain):
            ours[name] = f"heads.{match[1]}.weight"
    return {ours[name]: value for name, value in file.read(list(ours), torch.float32)}
