"""Which networks do the speed comparisons run, ours and diffusers' with the same weights?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ldm.models.unet import UNet, UNetConfig

CONF = Path(__file__).parents[1] / "conf" / "models" / "unet"
DTYPES = {"fp32": None, "bf16": torch.bfloat16}  # of autocast
OURS, REFERENCE = "ours", "diffusers"


def shape(size: str) -> UNetConfig:
    """The shipped network of that name."""
    node = yaml.safe_load((CONF / f"{size}.yaml").read_text())
    del node["_target_"]
    return UNetConfig(**node)


def network(size: str, whose: str) -> tuple[nn.Module, Callable[..., Tensor]]:
    """A network and how it is called; both have the weights of one draw."""
    torch.manual_seed(0)
    unet = UNet(shape(size))
    with torch.no_grad():  # the zeros of a fresh network would make products trivially cheap
        for value in unet.parameters():
            value.add_(0.01 * torch.randn_like(value))
    if whose == OURS:
        return unet, unet
    theirs = reference(unet)
    return theirs, lambda x, t, context: theirs(x, t, context, return_dict=False)[0]


def reference(unet: UNet) -> Any:
    """diffusers' network with the weights of ours."""
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise SystemExit("diffusers is not installed: pip install -e '.[reference]'") from error
    fields = asdict(unet.config)
    fields["attention_head_dim"] = fields.pop("num_attention_heads")  # their name for it
    del fields["checkpointing"]
    theirs: Any = UNet2DConditionModel(**fields)
    theirs.load_state_dict(unet.state_dict())
    return theirs
