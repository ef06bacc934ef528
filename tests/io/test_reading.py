"""Does every weight file come out as it was saved, in little memory, and every other file as an
error that says what it is?"""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from ldm.io import checkpoint
from ldm.io.foreign import UnreadableWeights
from ldm.io.reading import TensorFile, is_document, open_tensors

FORMATS = ("safetensors", "zip", "legacy")


def tensors() -> dict[str, Tensor]:
    """One of everything that both formats can hold."""
    torch.manual_seed(0)
    return {
        "f32": torch.randn(3, 4),
        "f16": torch.randn(5).half(),
        "bf16": torch.randn(2, 2, 2).bfloat16(),
        "f64": torch.randn(3).double(),
        "i64": torch.arange(7),
        "i32": torch.arange(3, dtype=torch.int32),
        "i16": torch.arange(3, dtype=torch.int16),
        "i8": torch.arange(-2, 2, dtype=torch.int8),
        "u8": torch.arange(9, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(0.5),
        "whole": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "complex": torch.randn(2, dtype=torch.complex64),
    }


def write(path: Path, content: Any, form: str = "zip", protocol: int = 2) -> Path:
    if form == "safetensors":
        save_file(content, path, metadata={"format": "pt", "note": "é"})
    else:
        zipped = form == "zip"
        torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def same(one: Tensor, other: Tensor) -> bool:
    """The same bits, dtype and shape."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bytes(one.detach().contiguous().reshape(-1).view(torch.uint8)) == bytes(
        other.detach().contiguous().reshape(-1).view(torch.uint8)
    )


def refuses(path: Path) -> str:
    """The error of opening `path`."""
    with pytest.raises(UnreadableWeights) as error:
        open_tensors(path)
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    return str(error.value)


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_every_dtype_comes_out_bit_for_bit(form: str, tmp_path: Path) -> None:
    saved = tensors()
    file = open_tensors(write(tmp_path / "w.x", saved, form))
    assert set(file) == set(saved)
    assert len(file) == len(saved)
    assert file.shapes() == {name: tuple(value.shape) for name, value in saved.items()}
    read = dict(file.read())
    for name, value in saved.items():
        assert file.dtype(name) == value.dtype
        assert same(read[name], value), name
        assert same(file[name], value), name
        assert read[name].untyped_storage().nbytes() == value.nbytes  # memory of its own
    assert file.metadata == ({"format": "pt", "note": "é"} if form == "safetensors" else {})
    assert list(file) == [name for name, _ in file.read()]


@pytest.mark.parametrize("form", FORMATS)
def test_dtypes_of_eight_bits_and_without_sign(form: str, tmp_path: Path) -> None:
    saved = {
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
        "f8_e5m2": torch.randn(4).to(torch.float8_e5m2),
        "u16": torch.arange(4).to(torch.uint16),
    }
    file = open_tensors(write(tmp_path / "w.x", saved, form))
    assert all(same(file[name], value) for name, value in saved.items())
    assert dict(file.read(dtype=torch.float32))["f8"].dtype == torch.float32


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_windows_of_a_storage_come_out_as_torch_reads_them(
    form: str, protocol: int, tmp_path: Path
) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    noted = torch.nn.Parameter(torch.randn(2))
    noted.note = 1  # type: ignore[attr-defined]
    saved = {
        "base": base,
        "shared": base,
        "window": base[1:3, 2:],
        "columns": base[:, ::2],
        "transposed": base.T,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "element": base[2, 3],
        "nothing": base[4:],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "noted": noted,
        "half": torch.arange(6).half()[1:],
    }
    path = write(tmp_path / "w.ckpt", saved, form, protocol)
    trusted = torch.load(path, weights_only=False)
    file = open_tensors(path)
    assert list(file) == list(trusted)
    for name, value in file.read():
        assert same(value, trusted[name]), name
        assert value.is_contiguous()
        assert not value.requires_grad
    for name, value in file.read(dtype=torch.float64):
        assert torch.equal(value, trusted[name].double()), name
    file["base"].zero_()  # what is handed out is nobody else's
    assert torch.equal(file["shared"], base)


@pytest.mark.parametrize("form", FORMATS)
def test_only_floating_numbers_are_converted(form: str, tmp_path: Path) -> None:
    saved = tensors()
    file = open_tensors(write(tmp_path / "w.x", saved, form))
    for name, value in file.read(dtype=torch.bfloat16):
        expected = saved[name].bfloat16() if saved[name].is_floating_point() else saved[name]
        assert same(value, expected), name


def test_chosen_tensors_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = open_tensors(write(tmp_path / "w.pt", tensors()))
    assert [name for name, _ in file.read(["bool", "f16"])] == ["f16", "bool"]
    assert list(file.read([])) == []
    assert "f16" in file
    assert "other" not in file
    with pytest.raises(KeyError, match="holds no tensor other"):
        list(file.read(["f16", "other"]))
    with pytest.raises(KeyError):
        file["other"]


def test_it_serves_as_a_state_dict(tmp_path: Path) -> None:
    saved, module = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    file = open_tensors(write(tmp_path / "w.pt", saved.state_dict()))
    module.load_state_dict(file)  # type: ignore[arg-type]
    assert torch.equal(module.weight, saved.weight)


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    pickled = open_tensors(write(tmp_path / "w.safetensors", tensors(), "zip"))
    assert len(pickled) == len(tensors())
    safe = open_tensors(write(tmp_path / "w.ckpt", tensors(), "safetensors"))
    assert safe.metadata["format"] == "pt"


# -- where the state dict lies ---------------------------------------------------------------------

W = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3)}


@pytest.mark.parametrize(
    ("content", "names", "values"),
    [
        (W, ["a.weight", "b.weight"], {}),
        ({**W, "epoch": 3, "name": "x"}, ["a.weight", "b.weight"], {"epoch": 3, "name": "x"}),
        (
            {"state_dict": W, "global_step": 875000, "lr": 0.5, "done": True, "none": None},
            ["a.weight", "b.weight"],
            {"global_step": 875000, "lr": 0.5, "done": True, "none": None},
        ),
        ({"state_dict": W, "other": torch.ones(1)}, ["a.weight", "b.weight"], {}),
        ({"model": W, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, list(W), {}),
        ({"module": W}, list(W), {}),
        ({"params_ema": W, "params": {"c": torch.ones(1)}}, list(W), {}),
        ({**W, "model": {"c": torch.ones(1)}}, list(W), {}),
        ({"unet": {"w": torch.ones(1)}, "step": 2}, ["unet.w"], {"step": 2}),
        (
            {320: ({"linear.0.weight": torch.ones(1)}, {"linear.0.weight": torch.ones(1)})},
            ["320.0.linear.0.weight", "320.1.linear.0.weight"],
            {},
        ),
    ],
)
def test_where_the_state_dict_lies(
    content: Any, names: list[str], values: dict[str, Any], tmp_path: Path
) -> None:
    file = open_tensors(write(tmp_path / "w.pt", content))
    assert list(file) == names
    assert file.values == values


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3}, torch.ones(2), [1]])
def test_a_pickle_without_named_tensors_is_an_error(content: Any, tmp_path: Path) -> None:
    assert "a pickle without named tensors; expected weights" in refuses(
        write(tmp_path / "w.pt", content)
    )


def test_a_whole_pickled_module_is_an_error_that_says_so(tmp_path: Path) -> None:
    words = refuses(write(tmp_path / "w.pt", torch.nn.Linear(2, 2)))
    assert "a pickled object (torch.nn.modules.linear.Linear)" in words
    assert "state_dict()" in words


# -- what a training really leaves behind ----------------------------------------------------------


def fake_class(monkeypatch: pytest.MonkeyPatch, name: str) -> type:
    """A class that is pickled by `name`, of a package that need not be here."""
    module_name, _, class_name = name.rpartition(".")
    parts = module_name.split(".")
    for i in range(len(parts)):
        parent = ".".join(parts[: i + 1])
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    made = type(class_name, (dict,), {"__module__": module_name})
    setattr(sys.modules[module_name], class_name, made)
    return made


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_checkpoint_of_lightning_loads_with_its_classes_left_out(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    config = OmegaConf.create({"unet": {"channels": [1, 2], "name": "x", "lr": 1e-4}})
    with monkeypatch.context() as patch:
        callback = fake_class(patch, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
        attributes = fake_class(patch, "pytorch_lightning.utilities.parsing.AttributeDict")
        old = fake_class(patch, "ldm.models.diffusion.old_ddpm.Settings")
        content = {
            "epoch": 11,
            "global_step": 470000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": model.state_dict(),
            "callbacks": {
                callback: {
                    "best_model_path": Path("logs/x.ckpt"),
                    "best_model_score": torch.tensor(0.5),
                    "monitor": numpy.float64(0.25),
                    "seen": {1, 2},
                },
            },
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [{"base_lrs": [numpy.float32(1e-4)], "last": numpy.int64(3)}],
            "hparams_name": "kwargs",
            "hyper_parameters": attributes(config=config, array=numpy.arange(4)),
            "settings": old(a=1),
        }
        path = write(tmp_path / "last.ckpt", content, form)
    caplog.set_level("INFO")
    file = open_tensors(path)
    assert file.shapes() == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert all(same(file[name], value) for name, value in model.state_dict().items())
    assert file.values == {
        "epoch": 11,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "hparams_name": "kwargs",
    }
    assert "objects of ldm.models.diffusion.old_ddpm.Settings" in caplog.text
    assert not any(name.startswith("ldm.models.diffusion.old") for name in sys.modules)
    assert not is_document(path)


def test_our_own_documents_are_known(tmp_path: Path) -> None:
    document = {"card": {"format": checkpoint.CARD_FORMAT}, "state_dict": {"w": torch.ones(2)}}
    path = tmp_path / "s000000001.ckpt"
    checkpoint.write(document, path)
    assert is_document(path)
    assert "a training checkpoint of ours" in refuses(path)
    for form in FORMATS:
        assert not is_document(write(tmp_path / "w.ckpt", W, form))
    html = tmp_path / "page.ckpt"
    html.write_text("<!DOCTYPE html><html>")
    assert not is_document(html)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        is_document(tmp_path / "none.ckpt")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableWeights, match="cut off"):
        is_document(path)


# -- shards ----------------------------------------------------------------------------------------


def write_shards(folder: Path, form: str = "safetensors") -> Path:
    saved = tensors()
    names = {f"model-{i}-of-3.{form}": list(saved)[i::3] for i in range(3)}
    for shard, inside in names.items():
        write(folder / shard, {name: saved[name] for name in inside}, form)
    index = folder / f"model.{form}.index.json"
    where = {name: shard for shard, inside in names.items() for name in inside}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_shards_are_read_as_one_file(form: str, tmp_path: Path) -> None:
    index = write_shards(tmp_path, form)
    for path in (index, tmp_path):
        file = open_tensors(path)
        read = dict(file.read())
        assert read.keys() == tensors().keys()
        assert all(same(read[name], value) for name, value in tensors().items())
    assert open_tensors(tmp_path).path == index


def test_all_missing_shards_are_named(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    for i in (0, 2):
        (tmp_path / f"model-{i}-of-3.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 shards are missing.*model-0.*model-2"):
        open_tensors(index)


def test_an_index_that_its_shards_contradict_is_an_error(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    write(tmp_path / "model-1-of-3.safetensors", {"other": torch.ones(1)}, "safetensors")
    assert "model-1-of-3.safetensors disagree about" in refuses(index)


@pytest.mark.parametrize(
    "where", ["../w.safetensors", "/etc/passwd", "a/../../w", "..", ".", "", "a\\b", "sub/w"]
)
def test_an_index_leads_nowhere_else(where: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    write(tmp_path / "w.safetensors", tensors(), "safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors(), where)}))
    assert "leads out of its folder" in refuses(index)


@pytest.mark.parametrize(
    "text",
    ["{}", "{", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 9999],
)
def test_another_json_is_no_index(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    assert "JSON text" in refuses(path) or "names none" in refuses(path)


def test_an_index_of_itself_is_an_error(tmp_path: Path) -> None:
    index = tmp_path / "x.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    assert "a JSON text" in refuses(index)


def test_a_folder_is_told_from_an_index(tmp_path: Path) -> None:
    assert "it holds no file" in refuses(tmp_path)
    write(tmp_path / "w.safetensors", tensors(), "safetensors")
    assert "in it: w.safetensors" in refuses(tmp_path)
    for name in ("a.index.json", "b.index.json"):
        (tmp_path / name).write_text("{}")
    assert "several indices of shards (a.index.json, b.index.json)" in refuses(tmp_path)


# -- numbers that are none -------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_all_named(form: str, bad: float, tmp_path: Path) -> None:
    saved = {f"layer{i}": torch.ones(100, dtype=torch.float16) for i in range(6)}
    for i in (1, 2, 3, 5):
        saved[f"layer{i}"][-1] = bad
    file = open_tensors(write(tmp_path / "w.ckpt", saved, form))
    assert len(list(file.read())) == 6  # as it is, for whoever copies a file
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with pytest.raises(UnreadableWeights, match=r"4 tensors hold NaN or infinity") as error:
            list(file.read(dtype=dtype))
        assert "layer1, layer2, layer3 and 1 more" in str(error.value)
    assert len(list(file.read(["layer0", "layer4"], torch.float32))) == 2


def test_a_conversion_that_overflows_names_the_dtype(tmp_path: Path) -> None:
    saved = {"fine": torch.ones(3), "big": torch.tensor([1.0, 1e5])}
    file = open_tensors(write(tmp_path / "w.ckpt", saved))
    with pytest.raises(UnreadableWeights, match=r"1 tensors are beyond .*torch.float16, as big"):
        list(file.read(dtype=torch.float16))
    assert len(list(file.read(dtype=torch.bfloat16))) == 2


def test_a_sum_that_overflows_is_no_alarm(tmp_path: Path) -> None:
    saved = {"w": torch.full((1000,), 3e38), "h": torch.full((1000,), 6e4).half()}
    file = open_tensors(write(tmp_path / "w.ckpt", saved))
    assert len(list(file.read(dtype=torch.float32))) == 2


# -- files that are something else -----------------------------------------------------------------


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty (0 bytes)"),
        (LFS, "run `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html lang='en'>", "a web page (HTML)"),
        (b"\n  <html><head>", "a web page (HTML)"),
        (b"<?xml version='1.0'?><Error>", "an XML text"),
        (b'{"error": "Access denied"}', "a JSON text"),
        (b"[1, 2]", "a JSON text"),
        (zipped("a.txt", "b/c.ckpt"), "in it: a.txt, b/c.ckpt); unpack it first"),
        (zipped("arr_0.npy"), "a NumPy archive (.npz)"),
        (zipped(), "an empty zip archive"),
        (zipped("a/data.pkl", "a/constants.pkl"), "a TorchScript program"),
        (zipped("a/data.pkl", "b/data.pkl"), "that PyTorch did not write"),
        (tar(), "a tar archive"),
        (b"\x1f\x8b\x08" + bytes(50), "a gzip archive"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"\x08\x07\x12\x07pytorch\x1a\x05", "an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "a PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "a JPEG picture"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (bytes(5000), "full of zeros"),
        ("Wähle ein Modell.".encode(), "a text"),
        (b"\xc3(\xa0\xa1\x01\x02\xfe\xff" * 100, "of no known format"),
        (b"N.", "a pickle that torch.save did not write"),
        (b"\x80\x04}\x94.", "a pickle that torch.save did not write"),
    ],
)
def test_what_a_file_is_instead(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(data)
    assert words in refuses(path)
    assert "expected weights: a .safetensors file" in refuses(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist; expected weights"):
        open_tensors(tmp_path / "model.ckpt")


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_was_cut_off_says_so(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.ckpt", tensors(), form)
    whole = path.read_bytes()
    for kept in range(1, len(whole), max(len(whole) // 60, 1)):
        path.write_bytes(whole[:kept])
        words = refuses(path)
    assert "cut off" in words
    assert "once more" in words


def test_a_cut_safetensors_file_names_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", {"w": torch.ones(1000)}, "safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    assert f"says {len(whole):,} bytes, the file has {len(whole) - 1000:,}" in refuses(path)


@pytest.mark.parametrize("form", FORMATS)
def test_any_change_of_bytes_is_read_or_refused(form: str, tmp_path: Path) -> None:
    """No other error, whatever the byte."""
    content = W if form == "safetensors" else {"state_dict": W, "x": 1}
    path = write(tmp_path / "w.ckpt", content, form)
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            list(open_tensors(path).read())
        except UnreadableWeights:
            refused += 1
    assert 20 < refused < 400


Change = Callable[[str, bytes], tuple[str, bytes] | None]


def rewritten(path: Path, change: Change, **how: Any) -> Path:
    """The archive with each entry as `change` gives it; None leaves it out."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, data in entries:
            changed = change(name, data)
            if changed:
                archive.writestr(*changed)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, d: None if n.endswith("data/0") else (n, d), "lacks storage 0, of the tensor a"),
        (
            lambda n, d: (n, d[:4]) if n.endswith("data/0") else (n, d),
            "storage 0 has 4 bytes, its pickle declares 8",
        ),
        (lambda n, d: (n, b"big") if n.endswith("byteorder") else (n, d), "big-endian"),
        (lambda n, d: (f"../{n}" if "data/1" in n else n, d), "paths that lead out of it"),
        (lambda n, d: (f"/{n}" if "data/1" in n else n, d), "paths that lead out of it"),
        (lambda n, d: (n.replace("data/1", "data/0"), d), "several entries of the same name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_was_tampered_with(change: Change, words: str, tmp_path: Path) -> None:
    path = rewritten(write(tmp_path / "w.ckpt", W), change)
    assert words in refuses(path)


def test_a_packed_archive_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "w.ckpt", W)
    rewritten(path, lambda n, d: (n, d), compression=zipfile.ZIP_DEFLATED)
    assert "is compressed or encrypted" in refuses(path)


def test_an_archive_repacked_as_it_is_loads(tmp_path: Path) -> None:
    path = rewritten(write(tmp_path / "w.ckpt", W), lambda n, d: (n, d))
    assert same(open_tensors(path)["a.weight"], W["a.weight"])


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{}", "without any tensor"),
        (b"{not json", "damaged"),
        (b'{"a": 1}', "damaged"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}', "damaged"),
        (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [-4, 8]}}', "damaged"),
        (b'{"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}', "damaged"),
        (b'{"a": {"dtype": "F32", "shape": [9999999999], "data_offsets": [0, 8]}}', "damaged"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 99]}}', "cut off"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "damaged"),
        (b'{"a":' * 9999, "damaged"),
        (b'{"a": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}', "of dtype F8_E8M0"),
    ],
)
def test_a_safetensors_header_is_checked(header: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(0 if header == b"{}" else 8))
    assert words in refuses(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", {"w": torch.ones(1000)}, "safetensors")
    file = open_tensors(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UnreadableWeights, match="became shorter"):
        file["w"]


# -- memory ----------------------------------------------------------------------------------------

MEASURE = """
import re, sys, torch
from pathlib import Path
from ldm.io.reading import open_tensors
def peak():  # not ru_maxrss, which a new process inherits from the one that started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
file = open_tensors(Path(sys.argv[1]))
torch.ones(10).half().float().sum()  # what is set up on first use
before = peak()
kept = dict(file.read(dtype=torch.float32))
print((peak() - before) / sum(v.nbytes for v in kept.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read there")
@pytest.mark.parametrize("form", FORMATS)
def test_reading_holds_the_result_and_little_more(form: str, tmp_path: Path) -> None:
    """fp16 (100 MB) to fp32 (200 MB). The file and the result together would be 1.5."""
    saved = {f"layer{i}": torch.full((1000, 1000), 0.5, dtype=torch.float16) for i in range(50)}
    path = write(tmp_path / "w.ckpt", saved, form)
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.3


def test_nothing_big_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "w.ckpt", {"w": torch.zeros(1 << 20)})
    file = open_tensors(path)
    assert isinstance(file, TensorFile)
    path.unlink()
    assert file.shape("w") == (1 << 20,)
    with pytest.raises(FileNotFoundError):
        file["w"]
