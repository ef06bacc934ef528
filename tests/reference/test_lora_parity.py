"""Our LoRA files in diffusers and PEFT, and theirs here: the same latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.adapters.attach import attached
from ldm.adapters.lora import DEFAULT_TARGETS_PEFT, DEFAULT_TARGETS_TEXT, LoRA, LoRAConfig
from ldm.io.lora import read_lora, write_lora
from ldm.models.unet import UNet, UNetConfig

pytestmark = pytest.mark.reference

CONFIG = UNetConfig(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 32),
    layers_per_block=1,
    num_attention_heads=4,
    cross_attention_dim=12,
    norm_num_groups=8,
)
Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def ours() -> UNet:
    torch.manual_seed(0)
    network = UNet(CONFIG)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return network


@pytest.fixture
def theirs(ours: UNet) -> Any:
    """diffusers' network with the same weights."""
    from diffusers import UNet2DConditionModel

    fields = asdict(CONFIG)
    fields["attention_head_dim"] = fields.pop("num_attention_heads")  # their name for it
    del fields["checkpointing"]
    network = UNet2DConditionModel(**fields)
    network.load_state_dict(ours.state_dict())
    return network


@pytest.fixture
def inputs() -> Inputs:
    rng = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 5, 12, generator=rng)
    return x, torch.tensor([3.0, 970.5]), context


@pytest.fixture
def lora(ours: UNet) -> LoRA:
    """Alphas and ranks that differ between layers, so that a mix-up shows."""
    torch.manual_seed(2)
    config = LoRAConfig(rank=2, alpha=3.0, rank_pattern={"*.attn2.*": 4, "*.proj_in": 1})
    lora = LoRA(ours, config)
    for path, layer in lora.named_layers().items():
        nn.init.normal_(layer.up.weight, std=0.1)
        layer.alpha = 1.5 if path.endswith("to_v") else layer.alpha
    return lora


def same(theirs: nn.Module, ours: nn.Module, lora: LoRA, inputs: Inputs) -> None:
    """Their network as it is, ours with the LoRA; and the LoRA does something."""
    x, t, context = inputs
    with torch.no_grad():
        expected, before = theirs(x, t, context).sample, ours(x, t, context)
        with attached(ours, lora):
            got = ours(x, t, context)
    assert (got - before).abs().max() > 1e-2
    assert_close(got, expected, rtol=0, atol=1e-4)  # fp32, sums in another order


def test_the_formula_on_their_weights_is_ours(
    ours: UNet, theirs: Any, lora: LoRA, inputs: Inputs, tmp_path: Path
) -> None:
    """kohya's definition, layer by layer, written down anew."""
    write_lora(tmp_path / "l.safetensors", unet=lora)
    tensors = load_file(tmp_path / "l.safetensors")
    changed = 0
    for path, module in theirs.named_modules():
        name = "lora_unet_" + path.replace(".", "_")
        if f"{name}.alpha" not in tensors:
            continue
        down, up = (tensors[f"{name}.lora_{role}.weight"] for role in ("down", "up"))
        scale = tensors[f"{name}.alpha"].item() / down.shape[0]
        delta = scale * (up.squeeze() @ down.squeeze() if down.shape[0] > 1 else up * down.mT)
        with torch.no_grad():
            module.weight.add_(delta.reshape(module.weight.shape))
        changed += 1
    assert changed == len(lora.named_layers())
    same(theirs, ours, lora, inputs)


def test_diffusers_loads_our_diffusers_file(
    ours: UNet, theirs: Any, lora: LoRA, inputs: Inputs, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    write_lora(tmp_path / "l.safetensors", unet=lora, format="diffusers")
    theirs.load_lora_adapter(str(tmp_path), weight_name="l.safetensors", prefix="unet")
    same(theirs, ours, lora, inputs)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_diffusers_pipeline_loads_our_files(
    format: str, ours: UNet, theirs: Any, lora: LoRA, inputs: Inputs, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    if format == "kohya":  # diffusers 0.42 loses an attention layer's own alpha in these files
        for layer in lora.named_layers().values():
            layer.alpha = 3.0
    write_lora(tmp_path / "l.safetensors", unet=lora, format=format)
    state, alphas, metadata = Loader.lora_state_dict(
        str(tmp_path),
        weight_name="l.safetensors",
        return_lora_metadata=True,
        unet_config=theirs.config,
    )
    assert (alphas is None, metadata is None) == (format == "diffusers", format == "kohya")
    Loader.load_lora_into_unet(state, network_alphas=alphas, unet=theirs, metadata=metadata)
    same(theirs, ours, lora, inputs)


def randomise(network: nn.Module) -> None:
    """Their up starts at zero as well."""
    torch.manual_seed(4)
    for name, value in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)


@pytest.mark.parametrize("rooted", [False, True])
def test_we_load_pefts_folder(
    rooted: bool, ours: UNet, theirs: Any, inputs: Inputs, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"],
        rank_pattern={"attn2.to_k": 3},
        alpha_pattern={"attn2.to_q": 5, "mid_block.attentions.0.proj_in": 1},
        use_rslora=rooted,
    )
    wrapped = peft.get_peft_model(theirs, config)
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path)
    file = read_lora(tmp_path)
    assert file.format == "peft"
    found = file.for_unet(ours)
    assert found is not None
    same(wrapped, ours, found, inputs)


def test_we_load_what_diffusers_saves(
    ours: UNet, theirs: Any, inputs: Inputs, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata

    targets = [glob.removeprefix("*.") for glob in DEFAULT_TARGETS_PEFT]
    theirs.add_adapter(peft.LoraConfig(r=2, lora_alpha=7, target_modules=targets))
    randomise(theirs)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=peft.get_peft_model_state_dict(theirs),
        **_collate_lora_metadata({"unet": theirs}),
    )
    file = read_lora(tmp_path)
    assert file.format == "diffusers"
    found = file.for_unet(ours)
    assert found is not None
    assert {layer.alpha for layer in found.named_layers().values()} == {7.0}
    same(theirs, ours, found, inputs)


@pytest.fixture
def make_text() -> Callable[[], CLIPTextModel]:
    def make() -> CLIPTextModel:
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
        return CLIPTextModel(config).eval()

    return make


def test_text_encoders_agree_with_peft_both_ways(
    make_text: Callable[[], CLIPTextModel], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    ours, theirs = make_text(), make_text()
    ids = torch.tensor([[18, 3, 4, 5, 19, 19, 19, 19]])
    torch.manual_seed(1)
    names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(r=2, lora_alpha=5, target_modules=names))
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path)
    found = read_lora(tmp_path).for_text(ours)
    assert found is not None
    assert len(found.named_layers()) == 12
    expected = wrapped(input_ids=ids).last_hidden_state
    with attached(ours, found):
        assert_close(ours(input_ids=ids).last_hidden_state, expected, rtol=0, atol=1e-5)

    made = LoRA(ours, LoRAConfig(rank=2, alpha=5, targets=DEFAULT_TARGETS_TEXT))
    assert made.named_layers().keys() == found.named_layers().keys()
