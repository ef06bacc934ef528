"""Is a training step what design.md's table says, whatever batch a sample is in?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ldm import rng
from ldm.app.job import Job as BuiltJob
from ldm.diffusion.objective import Objective
from ldm.training.module import NUM_BINS, DiffusionModule
from ldm.types import Conditioning, ImageBatch, LatentBatch

Job = Callable[..., BuiltJob]
BatchOf = Callable[..., ImageBatch]


class Known(nn.Module):
    """A network that is told what to answer, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.answer: Callable[[Tensor], Tensor] = lambda x: x
        self.asked: list[tuple[Tensor, ...]] = []

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        self.asked.append((x.detach(), t, context))
        return self.answer(x) + 0 * self.weight


@pytest.fixture
def known(tiny_job: Job) -> Callable[..., tuple[DiffusionModule, Known]]:
    """known("key=value", …): the module with a network that is told what to answer."""

    def build(*changes: str) -> tuple[DiffusionModule, Known]:
        module = tiny_job(*changes).module
        module.unet = Known()
        return module, module.unet

    return build


def awake(network: nn.Module) -> None:
    """Random numbers for the weights that begin as zeros, through which nothing is seen."""
    draws = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=draws))


def test_the_loss_of_the_right_answer_is_zero(
    known: Callable[..., tuple[DiffusionModule, Known]], batch_of: BatchOf, tiny_job: Job
) -> None:
    """The network gets alpha x0 + sigma eps and t; its target is the keyed noise itself."""
    module, network = known("training.caption_dropout=0")
    batch = batch_of(tiny_job())
    eps = rng.normal(0, "noise", batch.index, (4, 8, 8))
    network.answer = lambda x: eps
    assert module.batch_loss(batch, 0)["loss"].item() == pytest.approx(0, abs=1e-12)
    ((x, t, context),) = network.asked
    schedule = module.objective.schedule
    level = schedule.at(t).expand(x)
    x0 = module.encoders.latents(batch)
    torch.testing.assert_close(x, level.alpha * x0 + level.sigma * eps)
    assert torch.equal(context, module.encoders.text.encode(batch.captions).context)
    assert torch.equal(t, t.round())  # discrete times
    assert t.min() >= 0
    assert t.max() < schedule.num_train_steps


def test_a_sample_draws_the_same_in_any_batch(
    known: Callable[..., tuple[DiffusionModule, Known]], batch_of: BatchOf, tiny_job: Job
) -> None:
    module, network = known("diffusion/times=stratified", "diffusion.input_perturbation=0.1")
    batch = batch_of(tiny_job(), 0, 8)
    module.train()
    module.batch_loss(batch, 0)
    whole = network.asked.pop()
    for rows in (torch.tensor([5, 2]), torch.tensor([7])):
        part = ImageBatch(
            batch.levels[rows],
            tuple(batch.captions[i] for i in rows),
            tuple(batch.keys[i] for i in rows),
            batch.index[rows],
        )
        module.batch_loss(part, 0)
        for got, all_rows in zip(network.asked.pop(), whole, strict=True):
            # the VAE and CLIP round otherwise for other batch sizes
            torch.testing.assert_close(got, all_rows[rows], atol=1e-5, rtol=1e-5)


def test_the_ranks_together_fill_every_stratum_once(
    known: Callable[..., tuple[DiffusionModule, Known]],
) -> None:
    """Stratified over the global batch: 8 samples, 8 strata, whoever computes them."""
    module, _ = known("diffusion/times=stratified")
    for batch_number in (0, 5):
        index = torch.arange(8 * batch_number, 8 * batch_number + 8)
        parts = [module._times(index[rank::2], batch_number) for rank in range(2)]
        times = torch.stack(parts, dim=1).flatten()
        assert torch.equal(times, module._times(index, batch_number))
        assert sorted((times // 125).tolist()) == list(range(8))


def test_a_sample_does_not_keep_its_noise_level(
    known: Callable[..., tuple[DiffusionModule, Known]],
) -> None:
    module, _ = known("diffusion/times=stratified")
    firsts = {int(module._times(torch.arange(8 * k, 8 * k + 8), k)[0] // 125) for k in range(40)}
    assert len(firsts) == 8


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_captions_are_dropped_at_the_rate_and_by_index(
    known: Callable[..., tuple[DiffusionModule, Known]], rate: float
) -> None:
    module, _ = known(f"training.caption_dropout={rate}")
    index = torch.arange(4000)
    cond = Conditioning(torch.ones(4000, 2, 128))
    null = module.encoders.null().context[0, :2]
    dropped = (module._drop(cond, index).context == null).all(dim=(1, 2))
    # binomial: 5 standard deviations
    assert dropped.float().mean().item() == pytest.approx(rate, abs=5 * (rate / 4000) ** 0.5)
    some = torch.tensor([17, 3999, 2])
    again = module._drop(cond.rows(some), some).context
    assert torch.equal((again == null).all(dim=(1, 2)), dropped[some])


def test_without_dropout_the_captions_are_untouched(
    known: Callable[..., tuple[DiffusionModule, Known]],
) -> None:
    module, _ = known("training.caption_dropout=0")
    cond = Conditioning(torch.ones(5, 2, 128))
    assert module._drop(cond, torch.arange(5)) is cond


def test_input_perturbation_is_on_the_input_only_and_in_training_only(
    known: Callable[..., tuple[DiffusionModule, Known]], batch_of: BatchOf, tiny_job: Job
) -> None:
    """Ning et al. 2023: the target stays the noise; validation is not perturbed."""
    batch = batch_of(tiny_job())
    eps = rng.normal(0, "noise", batch.index, (4, 8, 8))
    plain, network = known()
    plain.batch_loss(batch, 0)
    clean = network.asked.pop()[0]
    module, network = known("diffusion.input_perturbation=0.5")
    network.answer = lambda x: eps
    module.train()
    assert module.batch_loss(batch, 0)["loss"].item() == pytest.approx(0, abs=1e-12)
    assert not torch.allclose(network.asked.pop()[0], clean)
    module.eval()
    module.batch_loss(batch, 0)
    assert torch.equal(network.asked.pop()[0], clean)


def test_offset_noise_shifts_whole_channels(
    known: Callable[..., tuple[DiffusionModule, Known]],
) -> None:
    module, _ = known("diffusion.offset_noise=10")
    plain, _ = known()
    x0, index = torch.zeros(3, 4, 8, 8), torch.arange(3)
    shift = module._noise(x0, index) - plain._noise(x0, index)
    assert shift.flatten(2).std(dim=2).max() < 1e-5  # one draw a channel
    assert shift.abs().max() > 1


def test_cached_latents_enter_where_pixels_would(
    known: Callable[..., tuple[DiffusionModule, Known]], batch_of: BatchOf, tiny_job: Job
) -> None:
    module, network = known("training.caption_dropout=0")
    batch = batch_of(tiny_job())
    module.batch_loss(batch, 0)
    moments = module.encoders.codec.moments(batch.pixels)
    context = module.encoders.text.encode(batch.captions).context
    cached = LatentBatch(moments, batch.captions, batch.keys, batch.index, context)
    module.batch_loss(cached, 0)
    for one, other in zip(*network.asked, strict=True):
        assert torch.equal(one, other)


def test_the_latents_of_inpainting_are_joined_on_the_channels(
    known: Callable[..., tuple[DiffusionModule, Known]],
) -> None:
    module, network = known()
    network.answer = lambda x: x[:, :4]
    cond = Conditioning(torch.zeros(2, 3, 128), None, torch.full((2, 5, 8, 8), 7.0))
    level = module.objective.schedule.at(torch.tensor([3.0, 4.0]))
    module._network(torch.zeros(2, 4, 8, 8), level, cond)
    x = network.asked.pop()[0]
    assert x.shape == (2, 9, 8, 8)
    assert bool((x[:, 4:] == 7).all())


def test_validation_is_the_same_each_time_and_covers_all_times(
    known: Callable[..., tuple[DiffusionModule, Known]], tiny_job: Job
) -> None:
    """Plain MSE at a time that is the sample's own: 11 samples, 11 places in the time range."""
    module, network = known("diffusion/weighting=min_snr")
    batch = tiny_job().data.val.batch(torch.arange(11))
    network.answer = lambda x: torch.zeros_like(x)
    first, second = (module.validation_losses(batch, 11) for _ in range(2))
    assert torch.equal(first["loss"], second["loss"])
    eps = rng.normal(0, "val-noise", batch.index, (4, 8, 8))
    torch.testing.assert_close(first["loss"], eps.square().flatten(1).mean(1))
    times = network.asked[0][1]
    assert len({int(t * 11 // 1000) for t in times.tolist()}) == 11
    assert set(first["bin"].tolist()) == set(range(NUM_BINS))


def test_dropout_layers_are_seeded_by_the_batch(tiny_job: Job, batch_of: BatchOf) -> None:
    """They draw from the global generator; its state is not saved, so it may not matter."""
    job = tiny_job("models.unet.dropout=0.5", "training.caption_dropout=0")
    awake(job.module.unet)
    job.module.train()
    batch, losses = batch_of(job), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        job.module.samples_seen = 0
        losses.append(job.module.training_step(batch, 0).item())
    assert losses[0] == losses[1]
    job.module.eval()
    job.module.samples_seen = 0
    assert job.module.training_step(batch, 0).item() != losses[0]


def test_encoders_that_overflow_stop_the_run(tiny_job: Job, batch_of: BatchOf) -> None:
    job = tiny_job()
    batch = batch_of(job)
    job.module.batch_loss(batch, 0)
    assert job.module.extra_metrics() == {"captions_cut": 0.0, "skipped_steps": 0.0}
    batch.pixels[0, 0, 0, 0] = float("nan")
    job.module.batch_loss(batch, 0)
    job.module.batch_loss(batch_of(job, 8), 0)  # good ones after it do not hide it
    with pytest.raises(RuntimeError, match=r"not finite since the last log line.*vae_dtype"):
        job.module.extra_metrics()


def test_the_encoders_are_outside_of_everything(tiny_job: Job) -> None:
    """Not in the state dict, not trainable, not touched by .train()."""
    module = tiny_job().module
    assert all(name.startswith("unet.") for name in module.state_dict())
    assert {id(p) for p in module.parameters()} == {id(p) for p in module.unet.parameters()}
    module.train()
    assert not module.encoders.codec.vae.training
    assert not module.encoders.text.module.training
    frozen = [*module.encoders.codec.vae.parameters(), *module.encoders.text.module.parameters()]
    assert not any(p.requires_grad for p in frozen)


def test_the_norm_is_clipped_and_kept(tiny_job: Job) -> None:
    """The norm that is logged is the one before clipping; null only measures."""
    for limit, after in (("1.0", 1.0), ("null", 5.0), ("10", 5.0)):
        module = tiny_job(f"training.gradient_clip={limit}").module
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([3.0, 4.0])
        optimizer = torch.optim.AdamW([parameter])
        module.configure_gradient_clipping(optimizer)
        assert module.grad_norm.item() == pytest.approx(5.0)
        assert parameter.grad.norm().item() == pytest.approx(after, rel=1e-5)


def test_channels_last_is_a_layout_and_no_other_result(tiny_job: Job, batch_of: BatchOf) -> None:
    losses = []
    for value in ("false", "true"):
        job = tiny_job(f"training.channels_last={value}")
        weight = job.module.unet.conv_in.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == (value == "true")
        awake(job.module.unet)
        losses.append(job.module.batch_loss(batch_of(job), 0)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_compile_is_in_place(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile(net) would rename every key; without the option nothing is compiled."""
    compiled: list[nn.Module] = []
    monkeypatch.setattr(
        "ldm.training.module.compile_in_place", lambda net, on_failure: compiled.append(net)
    )
    for value in ("true", "false"):
        module = tiny_job(f"training.compile={value}").module
        names = list(module.state_dict())
        module.configure_model()
        assert list(module.state_dict()) == names
        assert compiled == ([module.unet] if value == "true" else [])
        compiled.clear()


def test_the_objective_is_the_one_of_the_configuration(tiny_job: Job) -> None:
    job = tiny_job("diffusion/schedules=flow", "diffusion/prediction=flow", "sampling=euler_flow")
    assert isinstance(job.module.objective, Objective)
    assert job.card["objective"] == job.module.objective.spec()
    assert job.card["objective"]["prediction"]["name"] == "flow"
