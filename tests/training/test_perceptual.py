"""Is LPIPS found in every layout in which it is published, and missed in words?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.models.lpips import LPIPS
from ldm.training.perceptual import Perceptual, load_perceptual

Tensors = dict[str, Tensor]
PIXELS = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def network() -> LPIPS:
    torch.manual_seed(0)
    return LPIPS([4, 4, 8, 8, 8])


def package(network: LPIPS) -> Tensors:
    """As lpips.LPIPS(net="vgg") names them: slices, the heads twice, and buffers."""
    found = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for name, value in network.state_dict().items():
        kind, number, end = name.split(".")
        if kind == "features":
            block = sum(int(number) > tap for tap in network.taps) + 1
            found[f"net.slice{block}.{number}.{end}"] = value
        else:
            found[f"lin{number}.model.1.weight"] = value
            found[f"lins.{number}.model.1.weight"] = value.clone()
    return found


def in_one(state: Tensors, folder: Path) -> list[str]:
    save_file(state, folder / "lpips.safetensors")
    return [str(folder / "lpips.safetensors")]


def in_a_checkpoint(state: Tensors, folder: Path) -> list[str]:
    content = {f"loss.perceptual_loss.{name}": value for name, value in state.items()}
    content["decoder.conv_in.weight"] = torch.zeros(2)
    torch.save({"state_dict": content, "global_step": 3}, folder / "kl.ckpt")
    return [str(folder / "kl.ckpt")]


def in_two(state: Tensors, folder: Path) -> list[str]:
    vgg = {f"features.{k.split('.', 2)[2]}": v for k, v in state.items() if k.startswith("net.")}
    vgg["classifier.0.weight"] = torch.zeros(2)
    torch.save(vgg, folder / "vgg16.pth")
    heads = {k: v for k, v in state.items() if k.startswith("lin") and "lins" not in k}
    torch.save(heads, folder / "vgg.pth", _use_new_zipfile_serialization=False)  # as published
    return [str(folder / "vgg16.pth"), str(folder / "vgg.pth")]


@pytest.mark.parametrize("written", [in_one, in_a_checkpoint, in_two])
def test_every_published_layout(
    written: Callable[[Tensors, Path], list[str]], network: LPIPS, tmp_path: Path
) -> None:
    found = load_perceptual(written(package(network), tmp_path))
    assert torch.equal(found(*PIXELS), network(*PIXELS))
    assert found.hash() == Perceptual(network).hash()
    assert not any(p.requires_grad for p in found.network.parameters())


def test_what_is_missing_is_said(network: LPIPS, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"perceptual_weights=null.*torchvision's vgg16"):
        load_perceptual(None)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist.*lpips\.LPIPS"):
        load_perceptual(str(tmp_path / "nowhere.pth"))
    vgg, heads = in_two(package(network), tmp_path)
    with pytest.raises(ValueError, match=r"5 of 31 tensors are not there.*heads\.0\.weight.*two"):
        load_perceptual(vgg)
    with pytest.raises(ValueError, match=r"26 of 31 tensors are not there.*features\.0\.weight"):
        load_perceptual([heads])


def test_another_network_is_refused(network: LPIPS, tmp_path: Path) -> None:
    """AlexNet's LPIPS has the same names for its first layers."""
    state = package(network)
    state["net.slice1.0.weight"] = torch.zeros(4, 3, 11, 11)
    (path,) = in_one(state, tmp_path)
    with pytest.raises(ValueError, match=r"not LPIPS on VGG16.*features\.0\.weight \(4, 3, 11, 11"):
        load_perceptual(path)
    state["lin0.model.1.weight"] = torch.zeros(3)
    state["lins.0.model.1.weight"] = torch.zeros(3)
    (path,) = in_one(state, tmp_path)
    with pytest.raises(ValueError, match="tensors have another shape"):
        load_perceptual(path)
