"""What does one contender of sd15_step.py do? Run by it, with a name and a case as JSON.

A step begins with moments and contexts on the device, as a cache has them, and ends with the
averaged weights: latents, noise, times, network, loss, backward, clipping, AdamW, learning rate,
EMA. Ours runs in the Trainer of a training run; theirs does what train_text_to_image.py of
diffusers does between two batches, with accelerate, its settings' defaults and --use_ema.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import lightning as L
import torch
import torch.nn.functional as F
from flops import FACTOR, TOKENS
from lightning.pytorch.callbacks import Checkpoint
from networks import OURS, REFERENCE, network, shape
from peak_memory import Peak
from torch import Tensor

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import Eps
from ldm.diffusion.schedules import ScaledLinear
from ldm.models.codec import Codec
from ldm.models.text.none import NoText
from ldm.models.vae import ForeignVAE, ForeignVAEConfig
from ldm.training.callbacks.progress import SamplesProgress
from ldm.training.encoders import FrozenEncoders
from ldm.training.module import DiffusionModule
from ldm.training.optim import OptimSettings
from ldm.training.plan import RunSettings, make_plan
from ldm.training.trainer import TrainerSettings, build_trainer
from ldm.types import LatentBatch

SCALE = 0.18215
RATE, CLIP, DECAY = 1e-5, 1.0, 0.9999
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SHOWN = 4096  # numbers of a prediction that are compared


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Whose step, and whether its network is compiled."""

    name: str
    theirs: bool = False
    compile: bool = False


STOCK, STOCK_COMPILED = "diffusers + accelerate", "diffusers + accelerate, compiled"
CONTENDERS = (
    Contender(name="ours"),
    Contender(name="ours, compiled", compile=True),
    Contender(name=STOCK, theirs=True),
    Contender(name=STOCK_COMPILED, theirs=True, compile=True),
)


@dataclass(frozen=True)
class Case:
    """What is measured. threads 0: torch's default."""

    size: str
    px: int
    batch: int
    device: str
    threads: int
    clock: str


@dataclass(frozen=True)
class Inputs:
    """One batch on the device: moments [B,8,h,w] and contexts [B,77,D]; x and t to compare with."""

    moments: Tensor
    context: Tensor
    x: Tensor
    t: Tensor


def inputs_of(case: Case) -> Inputs:
    """The same for every contender."""
    config, side = shape(case.size), case.px // FACTOR
    assert config.cross_attention_dim is not None
    rng = torch.Generator().manual_seed(1)
    draws = (
        torch.randn(case.batch, 2 * config.in_channels, side, side, generator=rng),
        torch.randn(case.batch, TOKENS, config.cross_attention_dim, generator=rng),
        torch.randn(case.batch, config.in_channels, side, side, generator=rng),
        torch.linspace(0.0, 999.0, case.batch).round(),
    )
    return Inputs(*(value.to(case.device) for value in draws))


class Line:
    """The line to the driver. A loop calls `between` before each of its steps."""

    def __init__(self, case: Case, predict: Callable[[], Tensor], out: TextIO) -> None:
        self._on_gpu, self._now = case.device == "cuda", CLOCKS[case.clock]
        self._predict, self._out = predict, out
        self._left = self._steps = 0
        self._begin = 0.0
        self._peak = Peak(case.device)
        self._counting = False

    def between(self) -> None:
        """Goes on with the turn, or ends it and waits for what the driver wants next.

        The first step of a turn is not timed: it fills the allocator's cache again, which the
        others want while they have the device.
        """
        if self._steps and self._left == self._steps:
            self._begin = self._time()
        if self._left:
            self._left -= 1
            return
        if self._counting:
            self._answer(self._peak.mib())
        elif self._steps:
            self._answer((self._time() - self._begin) / self._steps)
        self._steps, self._counting = 0, False
        if self._on_gpu:
            torch.cuda.empty_cache()
        self._listen()

    def _listen(self) -> None:
        """predict: the prediction before any step; turn N: N timed steps; memory: of a step."""
        for line in sys.stdin:
            what, *number = line.split()
            if what == "turn":
                self._steps = self._left = int(*number)
                return
            if what == "memory":
                self._counting, self._left = True, 1  # two steps, not timed
                self._peak.start()
                return
            self._answer(self._prediction())
        raise SystemExit(0)  # the driver has gone

    def _time(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
        return self._now()

    def _prediction(self) -> list[float]:
        """With gradients, which what is compiled is compiled for."""
        found: list[float] = self._predict().detach().float().flatten()[:SHOWN].tolist()
        return found

    def _answer(self, value: Any) -> None:
        print(json.dumps(value), file=self._out, flush=True)


# -- ours -----------------------------------------------------------------------------------------


class Turns(Checkpoint):
    """Between two steps of the Trainer. A Checkpoint, so that Lightning adds none of its own."""

    def __init__(self, line: Callable[[DiffusionModule], Line]) -> None:
        self._line, self._open = line, None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self._open = self._open or self._line(pl_module)
        self._open.between()


class Batches:
    """The same batch again and again, under new indices: noise and times are keyed by them."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def __iter__(self) -> Iterator[LatentBatch]:
        rows, device = len(self._inputs.moments), self._inputs.moments.device
        names = tuple(str(row) for row in range(rows))
        index = torch.arange(rows, device=device)
        while True:
            yield LatentBatch(self._inputs.moments, names, names, index, self._inputs.context)
            index = index + rows


def run_ours(case: Case, contender: Contender, inputs: Inputs, out: TextIO) -> None:
    """A training run with nothing to save, log, draw or validate."""
    plan = make_plan(
        RunSettings(
            max_samples=case.batch * 10**6,
            batch_size=case.batch,
            log_every=None,
            val_every=None,
            sample_every=None,
            save_every=None,
        ),
        train_size=case.batch,
        val_size=0,
        world_size=1,
    )
    unet, _ = network(case.size, OURS)
    config = shape(case.size)
    vae = ForeignVAE(ForeignVAEConfig(latent_channels=config.in_channels, factor=FACTOR))
    module = DiffusionModule(
        unet,
        FrozenEncoders(Codec(vae, SCALE), NoText(), seed=0),
        Objective(schedule=ScaledLinear(), prediction=Eps()),
        plan=plan,
        optim=OptimSettings(lr=RATE, weight_decay=0.01),
        seed=0,
        card={},
        caption_dropout=0.0,  # theirs has none
        gradient_clip=CLIP,
        ema_half_life=6931 * case.batch,  # the decay of theirs, 0.9999 a step
        channels_last=case.device == "cuda",
        compile=contender.compile,
    )

    def line(module: DiffusionModule) -> Line:
        def predict() -> Tensor:
            with torch.autocast(case.device, torch.bfloat16):
                prediction: Tensor = module.unet(inputs.x, inputs.t, inputs.context)
            if contender.compile and module.fallbacks:  # it would run as it is, under this name
                raise SystemExit(f"{contender.name}: not compiled: {module.fallbacks}")
            return prediction

        return Line(case, predict, out)

    settings = TrainerSettings(
        accelerator="gpu" if case.device == "cuda" else "cpu", precision="bf16-mixed"
    )
    progress = SamplesProgress()
    progress.disable()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            settings, plan, callbacks=[Turns(line), progress], loggers=[], run_dir=Path(folder)
        )
        trainer.fit(module, Batches(inputs))


# -- theirs ---------------------------------------------------------------------------------------


def run_theirs(case: Case, contender: Contender, inputs: Inputs, out: TextIO) -> None:
    """As diffusers' example trains, in bf16: weights in fp32, AdamW with torch's defaults."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(
        mixed_precision="bf16",
        cpu=case.device == "cpu",
        dynamo_backend="inductor" if contender.compile else None,
    )
    unet, _ = network(case.size, REFERENCE)
    unet.train()
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, weight_decay=0.01)
    rates = get_scheduler("constant", optimizer=optimizer)
    ema = EMAModel(unet.parameters(), decay=DECAY)
    unet, optimizer, rates = accelerator.prepare(unet, optimizer, rates)
    ema.to(accelerator.device)

    line = Line(case, lambda: unet(inputs.x, inputs.t, inputs.context).sample, out)
    sums = 0.0
    while True:
        line.between()
        latents = DiagonalGaussianDistribution(inputs.moments).sample() * SCALE
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (case.batch,), device=latents.device)
        prediction = unet(schedule.add_noise(latents, noise, t), t, inputs.context).sample
        loss = F.mse_loss(prediction.float(), noise.float())
        # the script reads the loss in every step, twice
        sums += accelerator.gather(loss.repeat(case.batch)).mean().item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), CLIP)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        sums += loss.detach().item()


def main() -> None:
    name, case = sys.argv[1], Case(**json.loads(sys.argv[2]))
    contender = next(contender for contender in CONTENDERS if contender.name == name)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print; the line is the driver's
    logging.disable(logging.WARNING)
    if case.threads:
        torch.set_num_threads(case.threads)
    run = run_theirs if contender.theirs else run_ours
    run(case, contender, inputs_of(case), out)


if __name__ == "__main__":
    main()
