"""Is a cache that was made with something else found out, with what to do?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from ldm.data.manifest import (
    CHECKED,
    MANIFEST,
    NULL_CONTEXT,
    check_manifest,
    content_hash,
    null_context,
    read_manifest,
)
from ldm.data.settings import DataConfig, TrainSource
from ldm.data.source import open_data

Write = Callable[..., Path]
FIELDS: dict[str, Any] = {
    "format": 1,
    "vae": {"hash": "aa", "scale": 0.18215},
    "text": {"id": "clip", "hash": "bb", "layer": -1},
    "transform": {"crop": "center", "flip": 0.0},
    "resolution": 256,
    "null_context": "cc",
}
EXPECTED: dict[str, Any] = {
    "vae.hash": "aa",
    "vae.scale": 0.18215,
    "text.hash": "bb",
    "text.layer": -1,
    "null_context": "cc",
    "transform": {"crop": "center", "flip": 0.0},
    "resolution": 256,
}


def test_what_fits_has_no_problems() -> None:
    assert set(EXPECTED) == set(CHECKED)
    assert check_manifest(FIELDS, EXPECTED) == []
    assert check_manifest(FIELDS, {}) == []
    assert check_manifest(FIELDS, {**EXPECTED, "vae.scale": 0.18215 * (1 + 1e-9)}) == []


@pytest.mark.parametrize(
    ("name", "other", "said"),
    [
        ("vae.hash", "zz", "the VAE's weights"),
        ("vae.scale", 1.0, "vae.scale=0.18215, this run 1.0"),
        ("text.hash", "zz", "the text encoder's weights"),
        ("text.layer", -2, "the text encoder's layer"),
        ("null_context", "zz", "the null context"),
        ("transform", {"crop": "random", "flip": 0.0}, "how pictures were cut"),
        ("transform", {"crop": "center"}, "how pictures were cut"),
        ("resolution", 512, "data.size"),
    ],
)
def test_each_difference_is_said(name: str, other: object, said: str) -> None:
    (problem,) = check_manifest(FIELDS, {**EXPECTED, name: other})
    assert name in problem
    assert said in problem


def test_all_differences_are_said_at_once() -> None:
    assert len(check_manifest({}, EXPECTED)) == 4  # without contexts their fields do not count
    assert len(check_manifest({"text": {}}, EXPECTED)) == 7
    assert check_manifest({}, {"vae.hash": "aa"})[0].startswith(
        'the latent cache has vae.hash=nothing, this run "aa"'
    )


def test_without_contexts_the_text_encoder_does_not_matter() -> None:
    fields = {**FIELDS, "text": None, "null_context": None}
    assert check_manifest(fields, EXPECTED) == []


def test_numbers_and_texts_are_not_mixed_up() -> None:
    assert check_manifest({"resolution": "256"}, {"resolution": 256})
    assert check_manifest({"resolution": True}, {"resolution": 1})
    assert not check_manifest({"resolution": 256.0}, {"resolution": 256})


def test_an_unknown_expectation_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"vae\.hsah; known: vae\.hash"):
        check_manifest(FIELDS, {"vae.hsah": "aa"})


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not json"), ("[1]", "format='list'"), ("{}", "format=None"), ('{"format": 9}', "=9")],
)
def test_what_is_no_manifest_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / MANIFEST
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_manifest(path)


def test_opened_data_know_their_manifests(tmp_path: Path, write_latents: Write) -> None:
    shards = [str(write_latents(tmp_path / p / "a.tar", 6, prefix=p)) for p in ("a", "b")]
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(FIELDS))
    config = DataConfig(train=TrainSource(shards=shards), size=48, format="latents")
    data = open_data(config, seed=0)
    assert data.manifests == {str(tmp_path / "a"): FIELDS, str(tmp_path / "b"): None}


def test_remote_manifests_are_fetched(tmp_path: Path, write_latents: Write) -> None:
    shard = write_latents(tmp_path / "a" / "a.tar", 6)
    memory = fsspec.filesystem("memory")
    memory.pipe("/cache/a.tar", shard.read_bytes())
    config = DataConfig(
        train=TrainSource(shards="memory://cache/a.tar"),
        size=48,
        format="latents",
        cache_dir=str(tmp_path / "cache"),
    )
    folder = "memory://cache"
    assert open_data(config, seed=0).manifests == {folder: None}
    memory.pipe(f"/cache/{MANIFEST}", json.dumps(FIELDS).encode())
    assert open_data(config, seed=0).manifests == {folder: FIELDS}
    memory.rm("/cache", recursive=True)


def test_the_null_context_is_the_one_named(tmp_path: Path, npy: Callable[..., bytes]) -> None:
    values = np.arange(6.0).reshape(3, 2)
    path = tmp_path / NULL_CONTEXT
    path.write_bytes(npy(values))
    manifest = {"null_context": content_hash(npy(values))}
    got = null_context(path, manifest)
    assert torch.equal(got, torch.from_numpy(values.astype(np.float16))[None])
    path.write_bytes(npy(values + 1))
    with pytest.raises(ValueError, match="its manifest says"):
        null_context(path, manifest)
    for data, said in ((npy(values * np.nan), "finite"), (npy(values[0]), "finite"), (b"x", "npy")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=said):
            null_context(path, {"null_context": content_hash(data)})
