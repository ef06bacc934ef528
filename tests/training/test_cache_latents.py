"""Do cached latents train as the pictures do, and is another cache refused?"""

from __future__ import annotations

import json
import logging
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm import app
from ldm.app.job import build_job
from ldm.cli import ConfigError
from ldm.models import dtypes
from ldm.training import cache_latents as caching

Config = dict[str, Any]
LATENTS = ("data.format=latents", "data.num_workers=0")


@pytest.fixture
def cache(
    composed: Callable[..., Config], train_shards: Path, tmp_path: Path
) -> Callable[..., Path]:
    """cache("key=value", …): the training shards, encoded."""

    def make(
        *changes: str, out: str = "cache", shards: Path = train_shards, device: str = "cpu"
    ) -> Path:
        places = (f"data.train.shards={shards}", f"out={tmp_path / out}")
        line = (*places, f"device={device}", *changes)
        assert app.cache_latents(composed(*line, config="cache_latents")) == 0
        return tmp_path / out

    return make


def latents_of(folder: Path, val: Path | None = None) -> tuple[str, ...]:
    return (f"data.train.shards={folder}", f"data.val.shards={val or folder}", *LATENTS)


def test_a_cached_sample_is_the_encoded_picture(
    cache: Callable[..., Path], tiny_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    """Same order, same captions, moments to fp16; a fresh latent at every visit."""
    folder = cache()
    pictures = build_job(tiny_cfg(tmp_path / "a"))
    latents = build_job(tiny_cfg(tmp_path / "b", *latents_of(folder)))
    index = torch.arange(90, 106)  # across the end of the epoch of 96
    one, other = (job.data.train.batch(index) for job in (pictures, latents))
    assert one.keys == other.keys
    assert one.captions == other.captions
    moments = pictures.encoders.codec.moments(one.pixels)
    torch.testing.assert_close(other.moments.float(), moments, rtol=2e-3, atol=2e-3)
    first, second = (latents.encoders.latents(latents.data.train.batch(i)) for i in (index, index))
    assert torch.equal(first, second)
    assert not torch.equal(first, latents.encoders.latents(latents.data.train.batch(index + 96)))


def test_training_on_a_cache_comes_close_to_training_on_pictures(
    cache: Callable[..., Path],
    tiny_run: Callable[..., Path],
    metrics: Callable[[Path], list[dict[str, float]]],
    tmp_path: Path,
) -> None:
    folder = cache("contexts=true")
    losses = [
        [row["train/loss"] for row in metrics(tiny_run(tmp_path / name, *line))]
        for name, line in (("pictures", ()), ("latents", latents_of(folder)))
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)
    assert losses[0] != losses[1]  # or the cache was not read


def test_the_manifest_says_what_made_it(cache: Callable[..., Path]) -> None:
    folder = cache("contexts=true")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["samples"], manifest["left_out"]) == (96, 0)
    assert manifest["resolution"] == 32
    assert manifest["vae"]["scale"] == 1.0
    assert len(manifest["text"]["hash"]) == 40
    with tarfile.open(next(folder.glob("*.tar"))) as archive:
        names = {name.partition(".")[2] for name in archive.getnames()}
    assert names == {"context.npy", "json", "moments.npy", "txt"}


def test_dtypes_that_do_not_run_here_are_fp32(
    cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def written(folder: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted(folder.glob("*.tar"))]

    asked = ("models.vae_dtype=bf16", "models.text.dtype=bf16", "contexts=true")
    plain, in_bf16 = cache("contexts=true", out="fp32"), cache(*asked, out="bf16")
    monkeypatch.setattr(dtypes, "bf16_problem", lambda device: "as on an old GPU")
    fallen_back = cache(*asked, out="instead")
    assert written(fallen_back) == written(plain) != written(in_bf16)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [line.partition(" does not run here")[0] for line in said] == list(asked[:2])


def test_a_half_done_cache_goes_on(
    cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache()
    shards = sorted(folder.glob("*.tar"))
    before = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    (folder / "manifest.json").unlink()
    (folder / f".tmp-{shards[1].name}").write_bytes(b"half")
    written: list[str] = []
    write = caching._write_shard

    def counted(*args: Any) -> None:
        written.append(args[3].name)
        write(*args)

    monkeypatch.setattr(caching, "_write_shard", counted)
    cache()
    assert written == [shards[1].name]
    assert [shard.read_bytes() for shard in shards] == before  # no clock in the bytes
    assert not list(folder.glob(".tmp-*"))


def test_processes_share_the_shards(cache: Callable[..., Path], script: Any, train_shards: Path,
                                    tmp_path: Path) -> None:  # fmt: skip
    alone = cache()
    line = (f"data.train.shards={train_shards}", f"out={tmp_path / 'two'}", "device=cpu")
    done = script("cache_latents", *line, "devices=2", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    for shard in alone.glob("*.tar"):
        assert (tmp_path / "two" / shard.name).read_bytes() == shard.read_bytes()
    manifests = [json.loads((f / "manifest.json").read_text()) for f in (alone, tmp_path / "two")]
    assert manifests[0] == manifests[1]


def test_a_broken_picture_is_left_out_and_told(
    cache: Callable[..., Path], train_shards: Path, tmp_path: Path
) -> None:
    shards = Path(shutil.copytree(train_shards, tmp_path / "bad"))
    for index in shards.glob("*.index*"):
        index.unlink()
    first = sorted(shards.glob("*.tar"))[0]
    data = first.read_bytes()
    start = data.index(b"\x89PNG")
    first.write_bytes(data[: start + 40] + b"\0" * 60 + data[start + 100 :])
    folder = cache(out="bad_cache", shards=shards)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["samples"], manifest["left_out"]) == (95, 1)
    (told,) = folder.glob("*.left_out.jsonl")
    assert json.loads(told.read_text())["reason"]


def test_a_cache_of_another_vae_is_refused(
    cache: Callable[..., Path], tiny_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    folder = cache()
    manifest = json.loads((folder / "manifest.json").read_text())
    for path, value, words in (
        (("vae", "hash"), "0" * 40, "vae.hash"),
        (("vae", "scale"), 0.5, "vae.scale=0.5"),
        (("resolution",), 64, "resolution=64"),
    ):
        changed = json.loads(json.dumps(manifest))
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        (folder / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=words):
            app.train(tiny_cfg(tmp_path / "run", *latents_of(folder)))


def test_latents_that_are_scaled_twice_are_refused(
    cache: Callable[..., Path], tiny_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    folder = cache()
    line = latents_of(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"deviation 0\.1.* after the scale 0\.18215; about 1"):
        app.train(tiny_cfg(tmp_path / "run", *line, "models.vae.scaling_factor=0.18215"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("data.flip=0.5", "data.crop=random"), ["data.flip=0.5", "data.crop=random"]),
        (("data.max_zoom=1.2",), ["data.max_zoom=1.2"]),
        (("data.mode=stream",), ["data.mode=ordered"]),
        (("batch_size=0",), ["batch_size=0"]),
        (("contexts=maybe",), ["contexts"]),
        (("models.vae_dtype=int8",), ["int8", "fp32"]),
        (("ouut=x",), ["ouut", "out"]),
    ],
)
def test_what_cannot_be_cached(
    cache: Callable[..., Path], line: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        cache(*line)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_two_caches_do_not_share_a_folder(cache: Callable[..., Path], train_shards: Path) -> None:
    cache()
    with pytest.raises(ConfigError, match="holds a cache with another text, null_context"):
        cache("contexts=true")
    with pytest.raises(ConfigError, match="holds shards of something else"):
        cache(out=str(train_shards))


def test_a_gpu_that_is_not_there_is_named(cache: Callable[..., Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="devices=1, but torch sees 0 GPUs"):
        cache("models.vae_dtype=bf16", device="cuda")
