"""Do LoRA files of every layout mean the same, and come out as they went in?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.adapters.lora import DEFAULT_TARGETS_TEXT, LoRA, LoRAConfig
from ldm.io.lora import read_lora, write_lora
from ldm.models.text.clip import clip_l_config
from ldm.models.unet import UNet, UNetConfig

TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
Q_PROJ = "encoder.layers.0.self_attn.q_proj"


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


@pytest.fixture
def text() -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=20,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=18,
        eos_token_id=19,
    )
    return CLIPTextModel(config)


def trained(base: nn.Module, **fields: Any) -> LoRA:
    torch.manual_seed(1)
    lora = LoRA(base, LoRAConfig(**fields))
    for layer in lora.named_layers().values():
        nn.init.normal_(layer.up.weight)
    return lora


def same(one: LoRA, other: LoRA | None) -> None:
    """Every tensor and alpha, bit for bit."""
    assert other is not None
    ours, theirs = one.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    for path, weights in ours.items():
        assert torch.equal(weights.down, theirs[path].down)
        assert torch.equal(weights.up, theirs[path].up)
        assert weights.alpha == theirs[path].alpha


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def identical(one: Path, other: Path) -> bool:
    """Not the bytes: safetensors puts the header's texts in any order."""
    ours, theirs = load_file(one), load_file(other)
    return (
        header(one) == header(other)
        and ours.keys() == theirs.keys()
        and all(v.dtype == theirs[k].dtype and torch.equal(v, theirs[k]) for k, v in ours.items())
    )


# -- the layout of kohya's files -------------------------------------------------------------------


def test_sd1_in_kohyas_layout_has_the_264_layers(tmp_path: Path) -> None:
    """Names and shapes of all 3 x 264 tensors."""
    with torch.device("meta"):
        unet, text = UNet(UNetConfig()), CLIPTextModel(clip_l_config())
    loras = {
        "unet": LoRA(unet, LoRAConfig(rank=4, alpha=1.0), device="cpu"),
        "text": LoRA(
            text, LoRAConfig(rank=4, alpha=1.0, targets=DEFAULT_TARGETS_TEXT), device="cpu"
        ),
    }
    write_lora(tmp_path / "l.safetensors", **loras)
    shapes = {k: tuple(v.shape) for k, v in load_file(tmp_path / "l.safetensors").items()}
    assert shapes == expected_sd1_shapes(rank=4)
    assert len(shapes) == 3 * 264
    file = read_lora(tmp_path / "l.safetensors")
    assert (len(file.unet), len(file.text), file.format) == (192, 72, "kohya")
    for part, lora, base in (("unet", loras["unet"], unet), ("text", loras["text"], text)):
        found = getattr(file, f"for_{part}")(base)
        assert found.named_layers().keys() == lora.named_layers().keys()


def expected_sd1_shapes(rank: int) -> dict[str, tuple[int, ...]]:
    """Written down from the layout, not from the code."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, inner: int, outer: int, ones: tuple[int, ...] = ()) -> None:
        shapes[f"{name}.lora_down.weight"] = (rank, inner, *ones)
        shapes[f"{name}.lora_up.weight"] = (outer, rank, *ones)
        shapes[f"{name}.alpha"] = ()

    places = [
        (f"down_blocks_{i}_attentions_{j}", c)
        for i, c in enumerate((320, 640, 1280))
        for j in range(2)
    ]
    places += [("mid_block_attentions_0", 1280)]
    places += [
        (f"up_blocks_{i}_attentions_{j}", c)
        for i, c in ((1, 1280), (2, 640), (3, 320))
        for j in range(3)
    ]
    for place, c in places:
        layer(f"lora_unet_{place}_proj_in", c, c, (1, 1))
        layer(f"lora_unet_{place}_proj_out", c, c, (1, 1))
        block = f"lora_unet_{place}_transformer_blocks_0"
        for attention, context in (("attn1", c), ("attn2", 768)):
            layer(f"{block}_{attention}_to_q", c, c)
            layer(f"{block}_{attention}_to_k", context, c)
            layer(f"{block}_{attention}_to_v", context, c)
            layer(f"{block}_{attention}_to_out_0", c, c)
        layer(f"{block}_ff_net_0_proj", c, 8 * c)
        layer(f"{block}_ff_net_2", 4 * c, c)
    for i in range(12):
        block = f"lora_te_text_model_encoder_layers_{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(f"{block}_self_attn_{name}", 768, 768)
        layer(f"{block}_mlp_fc1", 768, 3072)
        layer(f"{block}_mlp_fc2", 3072, 768)
    return shapes


def test_kohyas_header_has_rank_alpha_texts_and_hashes(unet: UNet, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    lora = trained(unet, rank=2, alpha=1.5)
    write_lora(path, unet=lora, metadata={"ss_base_model_version": "sd_v1", "note": "mine"})
    texts = header(path)
    assert texts["ss_network_module"] == "networks.lora"
    assert (texts["ss_network_dim"], texts["ss_network_alpha"]) == ("2", "1.5")
    assert (texts["ss_base_model_version"], texts["note"]) == ("sd_v1", "mine")
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    assert texts["sshs_model_hash"] == hashlib.sha256(content[begin:]).hexdigest()
    only_ss = save(load_file(path), {k: v for k, v in texts.items() if k.startswith("ss_")})
    legacy = hashlib.sha256(only_ss[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8]
    assert texts["sshs_legacy_hash"] == legacy
    write_lora(path, unet=trained(unet, rank=2, rank_pattern={"*.to_q": 3}))
    assert header(path)["ss_network_dim"] == "Dynamic"


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_a_round_trip_keeps_every_bit(
    format: str, unet: UNet, text: CLIPTextModel, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "l.safetensors"
    loras = {
        "unet": trained(unet, rank=2, alpha=0.3, targets="*", rank_pattern={"*.conv1": 3}),
        "text": trained(text, rank=3, alpha=7.0, targets=DEFAULT_TARGETS_TEXT),
    }
    odd = loras["unet"].named_layers()[TO_Q]
    odd.alpha = 1.25  # a layer of its own
    write_lora(path, **loras, format=format)
    file = read_lora(path)
    assert file.format == format
    same_but_for_alphas_rounding(loras["unet"], file.for_unet(unet))
    same(loras["text"], file.for_text(text))
    assert [p.name for p in path.parent.iterdir()] == ["l.safetensors"]
    again = tmp_path / "again.safetensors"
    write_lora(again, unet=file.for_unet(unet), text=file.for_text(text), format=format)
    assert identical(again, path)


def same_but_for_alphas_rounding(one: LoRA, other: LoRA | None) -> None:
    """kohya's alpha is an fp32 tensor: 0.3 is not quite kept."""
    assert other is not None
    for path, layer in other.named_layers().items():
        own = one.named_layers()[path]
        assert_close(layer.alpha, own.alpha, rtol=1e-7, atol=0)
        own.alpha = layer.alpha
    same(one, other)


def test_half_precision_files_are_read_as_fp32(unet: UNet, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    lora = trained(unet, rank=2, alpha=0.1)
    write_lora(path, unet=lora, dtype=torch.float16)
    stored = load_file(path)
    assert {v.dtype for k, v in stored.items() if not k.endswith("alpha")} == {torch.float16}
    assert {v.dtype for k, v in stored.items() if k.endswith("alpha")} == {torch.float32}
    found = read_lora(path).for_unet(unet)
    assert found is not None
    assert found.weights()[TO_Q].up.dtype == torch.float32
    assert torch.equal(found.weights()[TO_Q].up, lora.weights()[TO_Q].up.half().float())
    again = tmp_path / "again.safetensors"
    write_lora(again, unet=found, dtype=torch.float16)
    assert identical(again, path)


def test_a_part_that_is_not_there_is_none(unet: UNet, text: CLIPTextModel, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    write_lora(path, text=trained(text, targets=DEFAULT_TARGETS_TEXT))
    assert read_lora(path).for_unet(unet) is None
    with pytest.raises(ValueError, match="nothing to write"):
        write_lora(path)
    with pytest.raises(ValueError, match="format='a1111'; written are kohya, diffusers"):
        write_lora(path, text=trained(text, targets=DEFAULT_TARGETS_TEXT), format="a1111")


def test_text_encoders_with_and_without_the_prefix_are_one(
    text: CLIPTextModel, tmp_path: Path
) -> None:
    """transformers before 5 keeps everything under text_model."""
    older = nn.Module()
    older.text_model = text
    plain, prefixed = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for format in ("kohya", "diffusers"):
        write_lora(plain, text=trained(text, targets=DEFAULT_TARGETS_TEXT), format=format)
        write_lora(prefixed, text=trained(older, targets=DEFAULT_TARGETS_TEXT), format=format)
        assert identical(plain, prefixed)
        assert all("text_model" in name for name in load_file(plain))
        found = read_lora(plain).for_text(older)
        assert found is not None
        assert f"text_model.{Q_PROJ}" in found.named_layers()


# -- the layouts of others -------------------------------------------------------------------------


def diffusers_new(name: str, role: str) -> str:
    return f"{name}.lora_{'A' if role == 'down' else 'B'}.weight"


def diffusers_old(name: str, role: str) -> str:
    return f"{name}.lora{'_linear_layer' if 'text' in name else ''}.{role}.weight"


def diffusers_oldest(name: str, role: str) -> str:
    attention, _, to = name.removesuffix(".0").rpartition(".")
    if "text" in name:
        return f"{attention}.to_{to.removesuffix('_proj')}_lora.{role}.weight"
    return f"{attention}.processor.{to}_lora.{role}.weight"


def without_unet(name: str, role: str) -> str:
    return diffusers_oldest(name.removeprefix("unet."), role)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("named", "format"),
    [
        (diffusers_new, "diffusers"),
        (diffusers_old, "diffusers-old"),
        (diffusers_oldest, "diffusers-oldest"),
        (without_unet, "diffusers-oldest"),
    ],
)
def test_diffusers_files_of_every_age_are_read(
    named: Callable[[str, str], str],
    format: str,
    bare: bool,
    unet: UNet,
    text: CLIPTextModel,
    tmp_path: Path,
) -> None:
    """alpha is the rank where the file has none."""
    loras = {
        "unet": trained(
            unet, rank=2, alpha=2, targets=("*.to_q", "*.to_k", "*.to_v", "*.to_out.0")
        ),
        "text_encoder.text_model": trained(text, rank=3, alpha=3, targets="*_proj"),
    }
    tensors = {
        named(f"{part}.{path}", role): getattr(weights, role).detach()
        for part, lora in loras.items()
        for path, weights in lora.weights().items()
        for role in ("down", "up")
    }
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, file)
    found = read_lora(tmp_path if bare else file)
    assert found.format == format
    same(loras["unet"], found.for_unet(unet))
    same(loras["text_encoder.text_model"], found.for_text(text))


def peft_folder(folder: Path, lora: LoRA, prefix: str = "", **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {
        diffusers_new(f"base_model.model.{prefix}{path}", role): getattr(weights, role).detach()
        for path, weights in lora.weights().items()
        for role in ("down", "up")
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 5, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def test_peft_folders_are_read_with_their_alphas(
    unet: UNet, text: CLIPTextModel, tmp_path: Path
) -> None:
    lora = trained(unet, rank=2, targets=("*.to_q", "*.to_k"))
    pattern = {"attn1.to_q": 3, f"^{TO_Q.replace('attn1', 'attn2')}": 7.5, "o_k": 9}
    for rooted in (False, True):
        folder = peft_folder(tmp_path / "u", lora, alpha_pattern=pattern, use_rslora=rooted)
        for place in (folder, folder / "adapter_model.safetensors"):
            found = read_lora(place).for_unet(unet)
            assert found is not None
            for path, layer in found.named_layers().items():
                alpha = 3.0 if path.endswith("attn1.to_q") else 5.0
                alpha = 7.5 if path == TO_Q.replace("attn1", "attn2") else alpha
                assert_close(layer.alpha, alpha * (2**0.5 if rooted else 1))  # Kalajdzievski 2023
                assert torch.equal(layer.up.weight, lora.weights()[path].up)
    encoder = trained(text, rank=2, alpha=5, targets="*_proj")
    for prefix in ("", "text_model."):
        found = read_lora(peft_folder(tmp_path / "t", encoder, prefix)).for_text(text)
        same(encoder, found)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"use_dora": True}, "use_dora=True, which is not read"),
        ({"bias": "all"}, "bias='all'"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA'; only LORA"),
        ({"lora_alpha": "5"}, "lora_alpha='5'; a number"),
        ({"lora_alpha": float("inf")}, "lora_alpha=inf; a number"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "regular expressions"),
        ({"alpha_pattern": [1]}, r"alpha_pattern=\[1\]"),
    ],
)
def test_a_peft_config_that_means_something_else_is_refused(
    config: dict[str, Any], text: str, unet: UNet, tmp_path: Path
) -> None:
    lora = trained(unet, rank=2, targets="*.to_q")
    with pytest.raises(ValueError, match=text):
        read_lora(peft_folder(tmp_path, lora, **config))


def test_diffusers_header_decides_alpha_and_may_be_broken(unet: UNet, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    lora = trained(unet, rank=2, alpha=8, targets="*.to_q")
    write_lora(path, unet=lora, format="diffusers")
    fields = json.loads(header(path)["lora_adapter_metadata"])
    assert (fields["unet.r"], fields["unet.lora_alpha"]) == (2, 8)
    assert fields["unet.target_modules"] == sorted(lora.named_layers())
    for broken in ("{", "[" * 100_000, "[]", '{"unet.r": 4}'):
        save_file(load_file(path), path, {"lora_adapter_metadata": broken})
        with pytest.raises(ValueError, match=r"lora_adapter_metadata is no JSON|lora_alpha=None"):
            read_lora(path)


def test_kernels_of_one_may_lack_their_ones_and_alpha_may_be_zero(
    unet: UNet, tmp_path: Path
) -> None:
    lora = trained(unet, rank=2, alpha=2, targets=("*.proj_in", "*.to_q"))
    tensors = {}
    write_lora(tmp_path / "a.safetensors", unet=lora)
    for name, value in load_file(tmp_path / "a.safetensors").items():
        other = value[:, :, 0, 0] if value.ndim == 4 else value[..., None, None]
        tensors[name] = torch.zeros(1) if value.ndim == 0 else other.contiguous()
    save_file(tensors, tmp_path / "b.safetensors")
    same(lora, read_lora(tmp_path / "b.safetensors").for_unet(unet))
