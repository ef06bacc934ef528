"""Is the autoencoder trained by its judges, and only where it may be?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm import app
from ldm.app.job import Job, build_job
from ldm.cli import ConfigError
from ldm.io import checkpoint as files
from ldm.io.frozen import load_vae_weights
from ldm.io.reading import open_tensors
from ldm.models.lpips import LPIPS
from ldm.parts import build
from ldm.training.discriminator import hinge_loss, score
from ldm.training.vae_module import VAEModule
from ldm.types import ImageBatch

Config = dict[str, Any]
VAE = (
    "experiment=vae_tiny",
    "training.optim.warmup=0",
    "training.optim.shape=constant",
    "init_from=tiny",
    "resume=auto",
)
DECODER = "training.optim.groups={vae.encoder.*:{lr:0},vae.quant_conv.*:{lr:0}}"
GAN = {
    "_target_": "ldm.training.vae_loss.GAN",
    "weight": 0.5,
    "start": 8,
    "width": 8,
    "lr": 0.5,
    "layers": 2,
}


@pytest.fixture
def vae_cfg(tiny_cfg: Callable[..., Config]) -> Callable[..., Config]:
    """vae_cfg(run_dir, "key=value", …, gan={…}): a tiny run on the packaged autoencoder."""

    def make(run_dir: Path, *changes: str, **loss: Any) -> Config:
        cfg = tiny_cfg(run_dir, *VAE, *changes)
        cfg["training"]["vae_loss"] |= loss
        return cfg

    return make


@pytest.fixture
def vae_run(vae_cfg: Callable[..., Config]) -> Callable[..., Path]:
    """As vae_cfg, trained; gives the run folder."""

    def run(run_dir: Path, *changes: str, **loss: Any) -> Path:
        assert app.train(vae_cfg(run_dir, *changes, **loss)) == 0
        return run_dir

    return run


@pytest.fixture
def lpips_file(tmp_path: Path) -> str:
    """LPIPS with random weights, named as the package lpips does."""
    torch.manual_seed(0)
    names = {"features": "net.slice1.{}.{}", "heads": "lin{}.model.1.{}"}
    state = LPIPS([4, 4, 8, 8, 8]).state_dict()
    parts = {name: name.split(".") for name in state}
    found = {names[kind].format(*rest): state[name] for name, (kind, *rest) in parts.items()}
    found |= {name: value.abs() for name, value in found.items() if name.startswith("lin")}
    torch.save(found, tmp_path / "lpips.pth")
    return str(tmp_path / "lpips.pth")


def gradients(module: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(module.parameters()), retain_graph=True))


# -- the two sides of the GAN ----------------------------------------------------------------------


def test_one_backward_pass_gives_each_side_its_own_gradient(
    vae_cfg: Callable[..., Config], tmp_path: Path, batch_of: Callable[..., ImageBatch]
) -> None:
    """The decoder's: of the terms and the weighted score, not of the hinge. The discriminator's: of
    the hinge alone. The value is the decoder's."""
    job: Job = build_job(vae_cfg(tmp_path, gan=GAN))
    module: VAEModule = job.module
    judge = module.discriminator
    assert judge is not None
    batch = batch_of(job)
    found = module.batch_loss(batch, 1)
    found["loss"].backward()

    pixels, decoded, terms = module._reconstruct(batch, "vae")
    plain, gan = terms["loss"].mean(), score(judge, decoded)
    last = module.vae.decoder.conv_out.weight
    norms = [torch.autograd.grad(v, last, retain_graph=True)[0].norm() for v in (plain, gan)]
    weight = 0.5 * norms[0] / (norms[1] + 1e-4)
    torch.testing.assert_close(found["gan_weight"], weight)
    assert found["loss"].item() == pytest.approx((plain + weight * gan).item(), rel=1e-5)
    expected = gradients(module.vae, plain + weight.detach() * gan)
    own = hinge_loss(judge(pixels), judge(decoded.detach()))
    assert found["discriminator"].item() == pytest.approx(own.item())
    expected += gradients(judge, own)
    got = [p.grad for part in (module.vae, judge) for p in part.parameters()]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


def test_the_weight_has_a_maximum(
    vae_cfg: Callable[..., Config], tmp_path: Path, batch_of: Callable[..., ImageBatch]
) -> None:
    job: Job = build_job(vae_cfg(tmp_path, gan={**GAN, "max_weight": 1e-3}))
    assert job.module.batch_loss(batch_of(job), 1)["gan_weight"].item() == pytest.approx(5e-4)


def test_a_gan_run_is_interrupted_and_resumed_exactly(
    vae_cfg: Callable[..., Config],
    vae_run: Callable[..., Path],
    tmp_path: Path,
    document: Callable[[Path], Config],
    metrics: Callable[[Path], list[dict[str, float]]],
    differences: Callable[..., list[str]],
) -> None:
    """Before the discriminator begins, after its first step, and with accumulation 2; with a group
    that has a rate of its own."""
    changes = ("training.micro_batch=4", "training.optim.groups={vae.decoder.*:{lr:0.5}}")
    whole, parts = vae_run(tmp_path / "whole", *changes, gan=GAN), tmp_path / "parts"
    states = []
    for samples in (8, 16, 32):
        vae_run(parts, *changes, f"training.max_samples={samples}", gan=GAN)
        states.append(document(parts))
    straight = document(whole)
    for key in ("state_dict", "ema", "optimizer_states", "lr_schedulers", "samples_seen"):
        assert differences(straight[key], states[-1][key]) == [], key

    # it waits as it was made, without moments, then moves; no average is kept of it
    made = build_job(vae_cfg(tmp_path / "new", gan=GAN)).module
    own = {f"discriminator.{k}": v for k, v in made.discriminator.state_dict().items()}
    for name, value in own.items():
        before, first = (state["state_dict"][name] for state in states[:2])
        assert torch.equal(before, value)
        assert not torch.equal(first, value)
    count = len(list(made.vae.parameters()))
    counts = [len(state["optimizer_states"][0]["state"]) for state in states]
    assert counts == [count, count + len(own), count + len(own)]
    assert all(name.startswith("vae.") for name in straight["ema"]["shadows"])
    rows = [row for row in metrics(whole) if "train/gan_weight" in row]
    assert [row["train/gan_weight"] > 0 for row in rows] == [False, True, True, True]
    rates = {group["lr"] for group in straight["optimizer_states"][0]["param_groups"]}
    assert rates == {0.002, 0.001}  # half of it for decoder and discriminator


def test_a_broken_step_is_dropped_on_both_sides(
    vae_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    differences: Callable[..., list[str]],
) -> None:
    """The discriminator's gradient is finite, yet it must not go on without the decoder."""
    original = VAEModule.batch_loss

    def broken(self: VAEModule, batch: Any, number: int) -> dict[str, Tensor]:
        found = original(self, batch, number)
        worse = self.vae.decoder.conv_out.weight.sum() * (float("inf") if number == 2 else 0)
        return {**found, "loss": found["loss"] + worse}

    monkeypatch.setattr(VAEModule, "batch_loss", broken)
    changes = ("training.save_every=8", "training.keep_checkpoints=9", "training.nonfinite=skip")
    folder = vae_run(tmp_path, *changes, gan=GAN) / "checkpoints"
    before, after, later = (files.read(files.checkpoint_path(folder, n)) for n in (16, 24, 32))
    for key in ("state_dict", "ema", "optimizer_states"):
        assert differences(before[key], after[key]) == [], key
    changed = {d.split(":")[0] for d in differences(after["state_dict"], later["state_dict"])}
    assert {".discriminator.main.0.weight", ".vae.decoder.conv_out.weight"} <= changed


@pytest.mark.slow
def test_two_processes_judge_as_one(
    vae_run: Callable[..., Path],
    script: Callable[..., Any],
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:
    """The discriminator waits in the first two steps, where DDP must not wait for it."""
    gan = {**GAN, "start": 16}
    keys = [f"++training.vae_loss.gan.{key}={value}" for key, value in gan.items()]
    two = tmp_path / "two"
    common = ("training.max_samples=64", "training.val_every=32", "training.optim.lr=0.0002")
    done = script("train", *VAE, *common, *keys, f"run_dir={two}", "training.trainer.devices=2")
    assert done.returncode == 0, done.stderr[-3000:]
    one = vae_run(tmp_path / "one", *common, gan=gan)
    rows, expected = metrics(two), metrics(one)
    assert len(rows) == len(expected) == 8 + 3
    for row, other in zip(rows, expected, strict=True):
        for name in ("train/loss", "train/gan", "train/gan_weight", "train/discriminator"):
            if name in other:  # summation order; 1e-5 was seen
                assert row[name] == pytest.approx(other[name], rel=1e-4), (row, name)
        if "val/loss_ema" in other:
            assert row["val/loss_ema"] == pytest.approx(other["val/loss_ema"], rel=1e-4)


# -- the decoder alone -----------------------------------------------------------------------------


def test_training_the_decoder_leaves_every_latent_as_it_was(
    vae_run: Callable[..., Path], tmp_path: Path, document: Callable[[Path], Config]
) -> None:
    """Bit for bit, and the run folder is what models.vae_weights takes."""
    run_dir = vae_run(tmp_path / "run", DECODER)
    found = document(run_dir)
    frozen = [n for n in found["state_dict"] if n.startswith(("vae.encoder.", "vae.quant_conv."))]
    trained = found["ema"]["shadows"].keys()
    assert frozen
    assert not trained & set(frozen)
    assert len(found["optimizer_states"][0]["state"]) == len(trained)
    assert "vae.encoder.*: frozen" in (run_dir / "plan.txt").read_text()

    config = build(found_config(run_dir))
    before, after = (load_vae_weights(config, source) for source in ("tiny", str(run_dir)))
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(before.encode(pixels), after.encode(pixels))
        latents = torch.randn(1, 4, 8, 8)
        assert not torch.equal(before.decode(latents), after.decode(latents))
    averaged = open_tensors(run_dir / "vae.safetensors")
    for name, value in found["ema"]["shadows"].items():
        assert torch.equal(averaged[name.removeprefix("vae.")], value), name


def found_config(run_dir: Path) -> Config:
    import yaml

    config: Config = yaml.safe_load((run_dir / "config.yaml").read_text())["models"]["vae"]
    return config


def test_vae_train_decoder_is_the_same_choice(
    vae_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    by_groups = build_job(vae_cfg(tmp_path, DECODER)).module
    cfg = vae_cfg(tmp_path)
    cfg["models"]["vae_train"] = "decoder"
    job = build_job(cfg)
    names = [
        [name for name, p in module.named_parameters() if p.requires_grad]
        for module in (by_groups, job.module)
    ]
    assert names[0] == names[1]
    assert list(job.module.ema.shadows) == names[0]
    assert job.card["vae"]["trained"] == "decoder"
    assert job.card["parent"]["source"] == "tiny"
    cfg["init_from"] = None
    with pytest.raises(ValueError, match="the random encoder would stay as it is"):
        build_job(cfg)


# -- the perceptual judge --------------------------------------------------------------------------


def test_the_perceptual_term_counts_and_is_kept_nowhere(
    vae_run: Callable[..., Path],
    tmp_path: Path,
    lpips_file: str,
    document: Callable[[Path], Config],
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:
    loss = {"perceptual": 0.7, "perceptual_weights": lpips_file, "l2": 0.0, "gradient": 0.0}
    run_dir = vae_run(tmp_path / "run", "training.val_every=32", **loss, kl=0.0)
    for row in metrics(run_dir):
        if "train/loss" in row:
            whole = row["train/l1"] + 0.7 * row["train/perceptual"]
            assert row["train/loss"] == pytest.approx(whole, rel=1e-5)
        else:
            assert row["val/perceptual_ema"] > 0
    found = document(run_dir)
    assert all(name.startswith("vae.") for name in found["state_dict"])
    assert len(found["card"]["vae"]["perceptual"]) == 40


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "loss", "said"),
    [
        ((), {"perceptual": 1.0}, "perceptual_weights=null"),
        ((), {"perceptual": 1.0, "perceptual_weights": "no.pth"}, "no.pth does not exist"),
        ((), {"kl": -1.0}, "training.vae_loss.kl=-1.0; 0 or more"),
        (("data.size=16",), {"gan": {**GAN, "layers": 3}}, "needs 24 px; use fewer layers"),
        (("models/vae=identity", "data.size=32"), {}, "identity has no weights to train"),
        (("training.optim.groups={vae.decodr.*:{lr:0}}",), {}, "nearest: vae.decoder"),
        (
            ("training.optim.groups={vae.decoder.conv_out.*:{lr:0}}",),
            {"gan": GAN},
            "leave it out of the frozen groups",
        ),
    ],
)
def test_bad_input_is_an_error_before_anything_is_written(
    vae_run: Callable[..., Path],
    tmp_path: Path,
    changes: tuple[str, ...],
    loss: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(ConfigError) as caught:
        vae_run(tmp_path / "run", *changes, **loss)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_fp16_gradients_are_too_coarse_for_the_gan(
    vae_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    module = build_job(vae_cfg(tmp_path, gan=GAN)).module
    module.trainer = SimpleNamespace(precision="16-mixed", global_rank=0, world_size=1)
    with pytest.raises(ValueError, match="use bf16-mixed or 32-true"):
        module.setup("fit")
