"""Is only what is needed taken from a hub, and does a start without a network work?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm.io import hub
from ldm.io.convert import Conversion, convert
from ldm.io.load import load_model

SD15 = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "v1-5-pruned.ckpt",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.bin",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/pytorch_model.bin",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
    "safety_checker/model.safetensors",
]


def test_the_best_variant_of_each_part() -> None:
    chosen = hub.wanted_files(SD15)
    assert sorted(chosen) == sorted(
        [
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/config.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "text_encoder/model.safetensors.index.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "scheduler/scheduler_config.json",
        ]
    )


def test_a_repository_without_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="no unet/ folder"):
        hub.wanted_files(["README.md", "model.safetensors"])


@pytest.fixture
def remote(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """A hub with one repository, org/name; gives the calls that were made."""
    folder = tmp_path / "remote"
    convert(Conversion(input=str(finished_run), output=folder, format="diffusers"))
    calls: list[str] = []

    def snapshot(repository: str, *, local_files_only: bool = False, **options: Any) -> str:
        calls.append("cache" if local_files_only else "download")
        cached = tmp_path / "cache"
        if local_files_only and not cached.exists():
            raise FileNotFoundError("not cached")
        if not local_files_only:
            assert "unet/diffusion_pytorch_model.safetensors" in options["allow_patterns"]
            shutil.copytree(folder, cached)
        return str(cached)

    class Api:
        def list_repo_files(self, repository: str, **_: Any) -> list[str]:
            assert repository == "org/name"
            return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub, "HfApi", Api)
    return lambda: calls


def test_a_hub_id_is_downloaded_once(remote: Callable[[], list[str]], finished_run: Path) -> None:
    first = load_model("org/name")
    assert first.text.hash() == load_model(finished_run).text.hash()
    assert remote() == ["cache", "download"]
    load_model("org/name")
    assert remote() == ["cache", "download", "cache"]


def test_no_network_and_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"org/name is neither a path here nor to be had"):
        load_model("org/name")
