"""Which model does a path hold, and does an unusable path say what to do?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.io import checkpoint as files
from ldm.io.configs import unet_config
from ldm.io.frozen import write_tensors
from ldm.io.load import find, load_model, open_network, save_export
from ldm.io.source import copy_into
from ldm.models.unet import UNet


def test_a_run_folder_gives_its_newest_averaged_weights(
    finished_run: Path, document: Callable[[Path], dict[str, Any]]
) -> None:
    newest = document(finished_run)
    model = load_model(finished_run)
    assert model.weights == "ema"
    assert model.card["samples_seen"] == 32
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, newest["ema"]["shadows"][f"unet.{name}"]), name
    assert not model.unet.training
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_raw_weights_are_given_when_asked_for(
    finished_run: Path, document: Callable[[Path], dict[str, Any]]
) -> None:
    newest = document(finished_run)["state_dict"]
    found = find(finished_run, weights="raw")
    assert found.weights == "raw"
    assert all(torch.equal(v, newest[f"unet.{k}"]) for k, v in found.tensors.items())
    averaged = find(finished_run).tensors
    assert any(not torch.equal(v, averaged[k]) for k, v in found.tensors.items())


def test_a_single_checkpoint_is_the_one_that_was_named(finished_run: Path) -> None:
    found = find(finished_run / "checkpoints" / "s000000016.ckpt")
    assert found.card["samples_seen"] == 16
    linked = find(finished_run / "checkpoints" / "last.ckpt")
    assert linked.card["samples_seen"] == 32


def test_a_damaged_newest_checkpoint_is_passed_over(run_copy: Path) -> None:
    newest = run_copy / "checkpoints" / "s000000032.ckpt"
    newest.write_bytes(newest.read_bytes()[:-7])
    assert find(run_copy).card["samples_seen"] == 16
    (run_copy / "checkpoints" / "s000000016.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="no valid checkpoint"):
        find(run_copy)


def test_a_checkpoint_finds_the_encoders_beside_it(finished_run: Path, tmp_path: Path) -> None:
    shutil.copy(finished_run / "checkpoints" / "s000000032.ckpt", tmp_path / "model.ckpt")
    shutil.copytree(finished_run / "frozen", tmp_path / "frozen")
    assert load_model(tmp_path / "model.ckpt").card["samples_seen"] == 32


def test_a_bare_checkpoint_says_what_it_needs(
    finished_run: Path, tmp_path: Path, document: Callable[[Path], dict[str, Any]]
) -> None:
    bare = tmp_path / "s000000032.ckpt"
    newest = document(finished_run)
    newest["card"]["vae"]["source"] = "/somewhere/vae.safetensors"
    files.write(newest, bare)
    with pytest.raises(FileNotFoundError, match="holds no frozen encoders; put the run's frozen/"):
        load_model(bare)


def test_a_bare_checkpoint_on_the_packaged_encoders_needs_no_folder(
    finished_run: Path, tmp_path: Path
) -> None:
    bare = Path(shutil.copy(finished_run / "checkpoints" / "s000000032.ckpt", tmp_path))
    model = load_model(bare)
    assert model.text.hash() == model.card["text"]["hash"]


def test_an_export_holds_the_model(finished_run: Path, tmp_path: Path) -> None:
    found = find(finished_run)
    save_export(tmp_path, found.card, found.tensors, weights="ema", dtype=torch.float16)
    shutil.copytree(finished_run / "frozen", tmp_path / "frozen")
    model = load_model(tmp_path, weights="raw")  # it has one kind only, and says which
    assert model.weights == model.card["weights"] == "ema"
    for name, value in model.unet.state_dict().items():
        assert torch.equal(value, found.tensors[name].half().float()), name


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: folder / "nowhere", FileNotFoundError, "does not exist; give tiny"),
        (lambda folder: folder, ValueError, "holds no card.json"),
        (lambda folder: _file(folder, b"text"), ValueError, "is not a readable checkpoint"),
        (lambda folder: _foreign(folder), ValueError, "card format 'NoneType'"),
    ],
    ids=["missing", "no card", "text file", "foreign document"],
)
def test_a_path_that_holds_no_model_says_so(
    tmp_path: Path, make: Callable[[Path], Path], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find(make(tmp_path))


def _file(folder: Path, data: bytes) -> Path:
    (folder / "x.ckpt").write_bytes(data)
    return folder / "x.ckpt"


def _foreign(folder: Path) -> Path:
    torch.save({"state_dict": {"w": torch.zeros(1)}}, folder / "y.ckpt")
    return folder / "y.ckpt"


def test_unknown_weights_are_an_error(finished_run: Path) -> None:
    with pytest.raises(ValueError, match="weights='best'; allowed: ema, raw"):
        find(finished_run, weights="best")


def test_a_model_file_of_another_architecture_is_an_error(run_copy: Path) -> None:
    found = find(run_copy)
    card = json.loads(json.dumps(found.card))
    card["unet"]["block_out_channels"] = [16, 16]
    save_export(run_copy / "export", card, found.tensors, weights="ema", dtype=torch.float32)
    shutil.copytree(run_copy / "frozen", run_copy / "export" / "frozen")
    with pytest.raises(ValueError, match="another architecture"):
        load_model(run_copy / "export")


def test_nothing_that_is_named_in_a_card_is_executed(run_copy: Path) -> None:
    """A pickle that would run code is refused by the reader."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (run_copy / "executed",))

    path = run_copy / "checkpoints" / "s000000099.ckpt"
    torch.save({"card": Evil()}, path)
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        find(path)
    assert not (run_copy / "executed").exists()


def test_weights_for_a_new_run_carry_their_lineage(finished_run: Path, tmp_path: Path) -> None:
    network = open_network(str(finished_run), weights="raw")
    newest = files.latest_valid(finished_run / "checkpoints")
    assert newest is not None
    assert network.lineage() == {
        "source": str(finished_run),
        "form": "document",
        "file": newest.name,
        "weights": "raw",
        "hash": files.file_hash(newest),
        "name": "shapes",
        "samples_seen": 32,
    }
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    write_tensors(file, network.tensors)
    for folder in (tmp_path, tmp_path / "unet"):
        found = open_network(str(folder))
        assert found.lineage()["hash"] == files.file_hash(file)
        unet = UNet(unet_config(find(finished_run).card["unet"]))
        copy_into(unet, found.tensors, "test")
