"""Which files are refused as LoRAs, and does the error say why?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.adapters.lora import LoRA, LoRAConfig
from ldm.io.lora import read_lora, write_lora
from ldm.models.unet import UNet, UNetConfig

TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(
        UNetConfig(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            num_attention_heads=4,
            cross_attention_dim=12,
            norm_num_groups=8,
        )
    )


def trained(base: nn.Module, **fields: Any) -> LoRA:
    torch.manual_seed(1)
    lora = LoRA(base, LoRAConfig(**fields))
    for layer in lora.named_layers().values():
        nn.init.normal_(layer.up.weight)
    return lora


def refusal(tmp_path: Path, tensors: dict[str, Tensor]) -> str:
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        read_lora(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lora_unet_conv_in.dora_scale", "is DoRA"),
        ("lora_unet_conv_in.hada_w1_a", "is LoHa"),
        ("lora_unet_conv_in.lokr_w1", "is LoKr"),
        ("lora_unet_conv_in.lora_mid.weight", "CP decomposition"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "a LoRA for SDXL"),
        ("transformer.x.lora_A.weight", "a LoRA for a transformer"),
        ("unet.conv_in.lora_B.bias", "LoRA with biases"),
    ],
)
def test_other_techniques_are_called_by_name(name: str, words: str, tmp_path: Path) -> None:
    tensors = {name: torch.zeros(2), "lora_unet_conv_out.alpha": torch.tensor(1.0)}
    assert words in refusal(tmp_path, tensors)


def test_a_whole_model_and_unknown_names_are_told(unet: UNet, tmp_path: Path) -> None:
    assert "is a UNet alone; a LoRA is expected" in refusal(tmp_path, dict(unet.state_dict()))
    text = refusal(tmp_path, {f"some.thing{i}\x1b[31m": torch.zeros(1) for i in range(20)})
    assert "20 of its 20 tensors have other names" in text
    assert "\x1b" not in text
    assert "and 12 more; expected are names as lora_unet_<layer>.lora_down.weight" in text
    assert "no LoRA that is known" in refusal(tmp_path, {})


def test_tensors_that_do_not_belong_together_are_all_told(tmp_path: Path) -> None:
    z = torch.zeros
    text = refusal(
        tmp_path,
        {
            "lora_unet_a.lora_down.weight": z(2, 4),
            "lora_unet_b.alpha": z(()),
            "lora_unet_c.lora_down.weight": z(2, 4),
            "lora_unet_c.lora_up.weight": z(4, 3),
            "lora_unet_d.lora_down.weight": z(2, 4),
            "lora_unet_d.lora_up.weight": torch.full((4, 2), float("nan")),
            "lora_unet_e.lora_down.weight": z(2, 4, dtype=torch.int32),
            "lora_unet_e.lora_up.weight": z(4, 2, dtype=torch.int32),
            "lora_unet_f.lora_down.weight": z(2, 4),
            "lora_unet_f.lora_up.weight": z(4, 2),
            "lora_unet_f.alpha": z(3),
            "lora_unet_g.lora_down.weight": z(0, 4),
            "lora_unet_g.lora_up.weight": z(4, 0),
            "down_blocks.h.lora_A.weight": z(1, 1),
            "lora_unet_down_blocks_h.lora_down.weight": z(1, 1),
            "lora_unet_down_blocks_h.lora_up.weight": z(1, 1),
        },
    )
    for told in (
        "a lacks its up",
        "b lacks its down and up",
        "c has down (2, 4) and up (4, 3)",
        "d holds NaN or infinity",
        "e has numbers of type torch.int32",
        "f has an alpha of shape (3,)",
        "g has down (0, 4)",
        "is there twice, under another name",
    ):
        assert told in text


def test_a_file_for_another_network_lists_the_layers(unet: UNet, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    config = UNetConfig(
        block_out_channels=(16, 32, 48), cross_attention_dim=20, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip
    write_lora(path, unet=trained(UNet(config), rank=2))
    with pytest.raises(ValueError) as error:
        read_lora(path).for_unet(unet)
    assert "is for another architecture" in str(error.value)
    assert "of its 132 unet layers are not in this UNet: down_blocks_0_attentions_1" in str(
        error.value
    )
    assert "(nearest: down_blocks_0_attentions_0_proj_in)" in str(error.value)
    write_lora(path, unet=trained(UNet(config), rank=2, targets="mid_block.*.to_k"))
    with pytest.raises(ValueError, match=r"down \(2, 48\) and up \(48, 2\), here \(2, 32\)"):
        read_lora(path).for_unet(unet)


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; give a LoRA file"):
        read_lora(tmp_path / "missing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds neither adapter_model.* \(PEFT\) nor"):
        read_lora(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 no tensors here")
    with pytest.raises(ValueError, match="is no safetensors file, or damaged"):
        read_lora(tmp_path / "x.pt")


def test_what_is_not_finite_is_not_written(unet: UNet, tmp_path: Path) -> None:
    lora = trained(unet, rank=2)
    with torch.no_grad():
        lora.named_layers()[TO_Q].up.weight[0, 0] = 1e9
    with pytest.raises(ValueError, match=r"1 tensors are not finite, as .*dtype=torch.float16"):
        write_lora(tmp_path / "l.safetensors", unet=lora, dtype=torch.float16)
    assert not list(tmp_path.iterdir())
