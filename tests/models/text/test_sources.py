"""Where files are looked for, and what is said when they are not there."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ldm.models.text import sources
from ldm.models.text.sources import (
    Origin,
    read_weights,
    tokenizer_folder,
    weights_folder,
    write_weights,
)


def write_model(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    return folder


def test_a_folder_is_taken_as_it_is(tmp_path):
    folder = write_model(tmp_path / "clip")
    assert weights_folder(Origin(str(folder))) == folder
    assert tokenizer_folder(Origin(str(folder))) == folder


def test_a_subfolder_has_its_tokenizer_beside_it(tmp_path):
    write_model(tmp_path / "text_encoder")
    write_model(tmp_path / "tokenizer")
    origin = Origin(str(tmp_path), subfolder="text_encoder")
    assert weights_folder(origin) == tmp_path / "text_encoder"
    assert tokenizer_folder(origin) == tmp_path / "tokenizer"


@pytest.mark.parametrize("source", ["/no/such/folder", "./none", "~/none/there", "a/b/c", ""])
def test_a_missing_folder_says_what_to_put_where(source):
    with pytest.raises(FileNotFoundError, match=r"put config\.json and model\.safetensors into it"):
        weights_folder(Origin(source))


def test_an_incomplete_folder_says_what_is_lacking(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"put config\.json and model\.safetensors into"):
        weights_folder(Origin(str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="put the tokenizer's files"):
        tokenizer_folder(Origin(str(tmp_path)))


def test_the_packaged_one_says_how_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sources.PACKAGED, "tiny", tmp_path / "clip")
    with pytest.raises(FileNotFoundError, match="experiment=clip_tiny trains it"):
        weights_folder(Origin("tiny"))
    write_model(tmp_path / "clip")
    assert weights_folder(Origin("tiny")) == tmp_path / "clip"


def test_an_unreachable_hub_is_one_error(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(sources, "snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError) as caught:
        weights_folder(Origin("openai/clip-vit-large-patch14"))
    message = str(caught.value)
    assert "'openai/clip-vit-large-patch14' is neither a folder here nor to be had" in message
    assert "no route" in message
    assert "put config.json and model.safetensors into a folder" in message


def test_the_cache_is_used_without_the_network(tmp_path, monkeypatch):
    calls = []

    def snapshot(source, *, revision, allow_patterns, local_files_only):
        calls.append((source, revision, local_files_only))
        return str(tmp_path)

    write_model(tmp_path / "text_encoder")
    monkeypatch.setattr(sources, "snapshot_download", snapshot)
    origin = Origin("org/name", subfolder="text_encoder", revision="v1")
    assert weights_folder(origin) == tmp_path / "text_encoder"
    assert calls == [("org/name", "v1", True)]


def test_pickled_weights_are_fetched_only_where_there_are_no_others(tmp_path, monkeypatch):
    asked = []

    def snapshot(source, *, revision, allow_patterns, local_files_only):
        asked.append((local_files_only, tuple(allow_patterns)))
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        (tmp_path / "config.json").write_text("{}")
        if "pytorch_model.bin" in allow_patterns:
            torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
        return str(tmp_path)

    monkeypatch.setattr(sources, "snapshot_download", snapshot)
    assert read_weights(weights_folder(Origin("org/name")))["a"].tolist() == [1, 1]
    online = [patterns for offline, patterns in asked if not offline]
    assert ["pytorch_model.bin" in patterns for patterns in online] == [False, True]


def test_shards_are_put_together(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    where = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = {"weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {k: v.tolist() for k, v in read_weights(tmp_path).items()} == {
        "a": [1, 1],
        "b": [0, 0, 0],
    }


def test_written_weights_can_be_read_by_others(tmp_path):
    write_weights({"a": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "new")
    assert (tmp_path / "new" / "model.safetensors").stat().st_mode & 0o044 == 0o044
    assert read_weights(tmp_path / "new")["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_no_pickle_is_executed(tmp_path):
    torch.save({"a": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        read_weights(tmp_path)


def test_shards_lie_beside_their_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for names, error, words in (
        (["../../etc/x.safetensors"], ValueError, "shards lie beside"),
        (["a.safetensors", "b.safetensors"], FileNotFoundError, r"a\.safetensors.*b\.safe"),
    ):
        index.write_text(json.dumps({"weight_map": {str(i): n for i, n in enumerate(names)}}))
        with pytest.raises(error, match=words):
            read_weights(tmp_path)


def test_a_half_precision_variant_is_read(tmp_path):
    save_file({"w": torch.ones(2).half()}, tmp_path / "model.fp16.safetensors")
    assert read_weights(tmp_path)["w"].dtype == torch.float16
