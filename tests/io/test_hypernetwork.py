"""Are hypernetwork files those of the web UIs?"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.adapters.hypernetwork import Hypernetwork, HypernetworkConfig
from ldm.io.hypernetwork import read_hypernetwork, write_hypernetwork

FULL = HypernetworkConfig(
    layer_structure=(1, 2, 1.5, 1), activation="swish", layer_norm=True, dropout=(0, 0.3, 0.2, 0)
)


def mlp(width: int, seed: int = 0) -> dict[str, Tensor]:
    """[1, 2, 1] with nothing between, as files name it."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"0": (2 * width, width), "1": (width, 2 * width)}
    return {
        f"linear.{i}.{kind}": torch.randn(shape if kind == "weight" else shape[:1], generator=rng)
        for i, shape in shapes.items()
        for kind in ("weight", "bias")
    }


def saved(tmp_path: Path, content: Any) -> Path:
    torch.save(content, tmp_path / "h.pt")
    return tmp_path / "h.pt"


@pytest.mark.parametrize("config", [HypernetworkConfig(), FULL])
def test_a_round_trip_keeps_every_bit(config: HypernetworkConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Hypernetwork((4, 6), config)
    path = tmp_path / "new" / "h.pt"
    write_hypernetwork(path, network, name="mine", step=7, sd_checkpoint="abcd1234")
    state = torch.get_rng_state()
    file = read_hypernetwork(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert file.about == {"name": "mine", "step": 7, "sd_checkpoint": "abcd1234"}
    ours, theirs = network.state_dict(), file.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(value.requires_grad for value in file.network.parameters())
    x = torch.randn(2, 4)
    for a, b in zip(network.eval().pair(4), file.network.eval().pair(4), strict=True):
        assert torch.equal(a(x), b(x))
    assert [p.name for p in path.parent.iterdir()] == ["h.pt"]


def test_the_written_document_is_the_web_uis(tmp_path: Path) -> None:
    write_hypernetwork(tmp_path / "h.pt", Hypernetwork((4,), FULL), name="mine", step=3)
    content = torch.load(tmp_path / "h.pt", weights_only=True)
    k, v = content.pop(4)
    assert set(k) == set(v)
    assert k["linear.0.weight"].shape == (8, 4)
    assert list(k)[::2] == [f"linear.{i}.weight" for i in (0, 2, 4, 6, 8, 9)]
    assert content == {
        "step": 3,
        "name": "mine",
        "layer_structure": [1, 2, 1.5, 1],
        "activation_func": "swish",
        "is_layer_norm": True,
        "weight_initialization": "Normal",
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "activate_output": False,
        "use_dropout": True,
        "dropout_structure": [0, 0.3, 0.2, 0],
        "last_layer_dropout": True,
        "optional_info": None,
    }


def test_the_first_files_are_read(tmp_path: Path) -> None:
    """Two layers called linear1 and linear2, and no word about the structure."""
    named = {}
    for at in (0, 1):
        named[at] = {
            key.replace("linear.0", "linear1").replace("linear.1", "linear2"): value.half()
            for key, value in mlp(4, seed=at).items()
        }
    file = read_hypernetwork(saved(tmp_path, {4: (named[0], named[1])}))
    x = torch.randn(3, 4)
    for at, transform in enumerate(file.network.pair(4)):
        w = {key: value.half().float() for key, value in mlp(4, seed=at).items()}
        h = x @ w["linear.0.weight"].T + w["linear.0.bias"]
        expected = x + h @ w["linear.1.weight"].T + w["linear.1.bias"]
        torch.testing.assert_close(transform(x), expected)
    assert file.about == {}


@pytest.mark.parametrize(
    ("said", "dropout"),
    [
        ({"use_dropout": True, "last_layer_dropout": True}, (0, 0.3, 0.3, 0)),
        ({"use_dropout": True}, (0, 0.3, 0, 0)),
        ({"use_dropout": False, "last_layer_dropout": True}, ()),
        ({"use_dropout": True, "dropout_structure": [0, 0, 0.1, 0]}, (0, 0, 0.1, 0)),
    ],
)
def test_dropout_of_every_age_is_understood(
    said: dict[str, Any], dropout: tuple[float, ...], tmp_path: Path
) -> None:
    """The places of the weights depend on it, so a mistake does not load."""
    config = HypernetworkConfig(layer_structure=(1, 2, 2, 1), activation="relu", dropout=dropout)
    pair = tuple(dict(part.state_dict()) for part in Hypernetwork((4,), config).pair(4))
    content = {4: pair, "layer_structure": [1, 2, 2, 1], "activation_func": "relu", **said}
    path = saved(tmp_path, {**content, "activate_output": False})
    assert read_hypernetwork(path).network.config == config


def test_a_missing_activate_output_means_yes(tmp_path: Path) -> None:
    config = HypernetworkConfig(activation="tanh", layer_norm=True, activate_output=True)
    pair = tuple(dict(part.state_dict()) for part in Hypernetwork((4,), config).pair(4))
    path = saved(tmp_path, {4: pair, "activation_func": "Tanh", "is_layer_norm": True})
    assert read_hypernetwork(path).network.config == config


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"state_dict": {}, "step": 1},
            "by context width; its entries are 'state_dict'",
        ),
        ([1], "is no hypernetwork but a list"),
        ({4: mlp(4)}, "4 has no pair of weights"),
        ({4: (mlp(4), [1])}, "4 v is no dict of tensors"),
        ({4: (mlp(4), {})}, "4 v lacks linear.0.bias"),
        ({4: (mlp(4) | {"x": torch.ones(1)}, mlp(4))}, "4 k has an unknown 'x'"),
        ({5: (mlp(4), mlp(4))}, r"5 k linear.0.bias is \(8,\), expected \(10,\)"),
        ({4: (mlp(4), {k: v / 0 for k, v in mlp(4).items()})}, "4 v .* no finite number"),
        ({4: (mlp(4), mlp(4)), "activation_func": "glu"}, "activation='glu'; one of linear"),
        ({4: (mlp(4), mlp(4)), "layer_structure": "121"}, "layer_structure='121'; a list"),
        ({4: (mlp(4), mlp(4)), "layer_structure": [1, float("nan"), 1]}, "give positive numbers"),
        ({-4: (mlp(4), mlp(4))}, "give different positive context widths"),
    ],
)
def test_what_does_not_fit_is_told(content: Any, text: str, tmp_path: Path) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(ValueError, match=text) as error:
        read_hypernetwork(path)
    assert str(path) in str(error.value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched"),)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({4: Evil()}))
    torch.save({4: Evil()}, tmp_path / "zip.pt")
    for name in ("evil.pt", "zip.pt"):
        with pytest.raises(ValueError, match="is no file of plain tensors"):
            read_hypernetwork(name)
    assert not (tmp_path / "touched").exists()
    with pytest.raises(FileNotFoundError, match=r"does not exist; give a hypernetwork"):
        read_hypernetwork("missing.pt")
