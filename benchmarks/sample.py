"""How fast do we sample beside diffusers' StableDiffusionPipeline, with the same weights?

    python benchmarks/sample.py [--quick] [--sizes tiny mini] [--batches 1 8] [--dtypes fp32]
                                [--device auto] [--steps 10] [--guidance 7.5] [--tokens 77]
                                [--seconds 60] [--clock wall] [--json]

From contexts and start noise to latents, DDIM with guidance, the same numbers in both (checked
first). The contenders take turns, one sampling each, in an order that rotates: what else the
machine does meets all of them. `speed` is the median over rounds of diffusers/ours, above 1 is
faster. `outside` is the share of a sampling that is not spent in the network (its calls, and
its one-time work on the text), from every fourth round. Threads: OMP_NUM_THREADS. `--clock cpu`
counts this process's CPU time, which leaves out the waiting on a busy machine: for one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from networks import DTYPES, REFERENCE, machine, network, shape
from torch import Tensor, nn

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import Eps
from ldm.diffusion.schedules import ScaledLinear
from ldm.sampling.denoiser import Denoiser, Network
from ldm.sampling.guidance import cfg
from ldm.sampling.presets import get_sampler
from ldm.types import Conditioning

WITHOUT = "ours, no text keys"  # the text is projected again at every step
CONTENDERS = ("ours", WITHOUT, REFERENCE)
CLOCKED_EVERY = 4  # rounds; on a GPU the clocks wait for it, so the other rounds run without
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FACTOR = 8  # pixels a latent position that diffusers assumes where it has no VAE


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is sampled. batch: pictures; tokens: text positions."""

    size: str
    batch: int
    dtype: str
    device: str
    steps: int
    guidance: float
    tokens: int
    clock: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. ms: of one sampling; speed: against diffusers; outside: a share."""

    size: str
    batch: int
    dtype: str
    contender: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    speed: float
    speed_quartiles: tuple[float, float]
    outside: float
    rounds: int


def main() -> None:
    args = parse()
    first = Case(
        size=args.sizes[0],
        batch=args.batches[0],
        dtype=args.dtypes[0],
        device=args.device,
        steps=args.steps,
        guidance=args.guidance,
        tokens=args.tokens,
        clock=args.clock,
    )
    cases = [
        replace(first, size=size, batch=batch, dtype=dtype)
        for size in args.sizes
        for dtype in args.dtypes
        for batch in args.batches
    ]
    rows: list[Row] = []
    for case in cases:
        rows += measure(case, seconds=args.seconds)
        if not args.json:
            print(table(rows[-len(CONTENDERS) :], header=case is cases[0]), flush=True)
    settings = {key: getattr(args, key) for key in ("steps", "guidance", "tokens", "clock")}
    report = {"machine": machine(args.device, 0), "settings": settings}
    if args.json:
        print(json.dumps({**report, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print(report["machine"], settings)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mini"], choices=["tiny", "mini"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="pictures at once")
    parser.add_argument("--dtypes", nargs="+", default=["fp32"], choices=list(DTYPES))
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=10, help="of DDIM")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--tokens", type=int, default=77, help="text positions; 77 in SD 1")
    parser.add_argument("--seconds", type=float, default=60.0, help="at least, a case")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--quick", action="store_true", help="--seconds 10 --sizes tiny")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.clock == "cpu" and (args.device != "cpu" or torch.get_num_threads() != 1):
        parser.error("--clock cpu is for one thread of a CPU; set OMP_NUM_THREADS=1, --device cpu")
    if args.quick:
        args.seconds, args.sizes = 10.0, ["tiny"]
    return args


# --- measuring -------------------------------------------------------------------------------


def measure(case: Case, *, seconds: float) -> list[Row]:
    """Every contender on one case, after a check that they sample the same."""
    samplers = {name: Sampling(case, name) for name in CONTENDERS}
    agree(samplers)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    outside: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    order, end = list(CONTENDERS), time.monotonic() + seconds
    while len(times[REFERENCE]) <= CLOCKED_EVERY or time.monotonic() < end:
        for name in order:
            if len(times[name]) % CLOCKED_EVERY == 0:
                outside[name].append(samplers[name].outside())
            times[name].append(samplers[name].timed())
        order = order[1:] + order[:1]
    return [row(case, name, times, statistics.median(outside[name])) for name in CONTENDERS]


def row(case: Case, name: str, times: dict[str, list[float]], outside: float) -> Row:
    low, middle, high = statistics.quantiles([1e3 * t for t in times[name]], n=4)
    speeds = [b / a for a, b in zip(times[name], times[REFERENCE], strict=True)]
    speed_low, speed, speed_high = statistics.quantiles(speeds, n=4)
    return Row(
        size=case.size,
        batch=case.batch,
        dtype=case.dtype,
        contender=name,
        median_ms=middle,
        quartiles_ms=(low, high),
        speed=speed,
        speed_quartiles=(speed_low, speed_high),
        outside=outside,
        rounds=len(speeds),
    )


class Sampling:
    """One contender with the noise and the contexts that all of them are given."""

    def __init__(self, case: Case, contender: str) -> None:
        self.case = case
        self.device = torch.device(case.device)
        self.now = CLOCKS[case.clock]
        self.network, _ = network(case.size, REFERENCE if contender == REFERENCE else "ours")
        self.network.to(self.device).eval()
        config = shape(case.size)
        assert config.cross_attention_dim is not None
        rng = torch.Generator().manual_seed(1)
        side = config.sample_size
        noise = torch.randn(case.batch, config.in_channels, side, side, generator=rng)
        texts = (2, case.batch, case.tokens, config.cross_attention_dim)
        self.noise = noise.to(self.device)
        self.cond, self.uncond = torch.randn(texts, generator=rng).to(self.device)
        if contender == REFERENCE:
            self.draw = theirs(case, self.network, self.noise, self.cond, self.uncond)
        else:
            called = calls_only(self.network) if contender == WITHOUT else self.network
            self.draw = ours(case, called, self.noise, self.cond, self.uncond)

    def latents(self) -> Tensor:
        amp = DTYPES[self.case.dtype]
        autocast = torch.autocast(self.device.type, amp or torch.bfloat16, enabled=amp is not None)
        with torch.inference_mode(), autocast:
            return self.draw()

    def timed(self) -> float:
        """Seconds of one sampling."""
        self.wait()
        begin = self.now()
        self.latents()
        self.wait()
        return self.now() - begin

    def outside(self) -> float:
        """The share of one sampling that is not spent in the network."""
        inside = 0.0
        methods = [name for name in ("forward", "project") if hasattr(type(self.network), name)]

        def clocked(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                self.wait()
                begin = self.now()
                answer = method(*args, **kwargs)
                self.wait()
                inside += self.now() - begin
                return answer

            return call

        for name in methods:  # on the instance, in front of the class's own
            object.__setattr__(self.network, name, clocked(getattr(self.network, name)))
        total = self.timed()
        for name in methods:
            object.__delattr__(self.network, name)
        return 1 - inside / total

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def agree(samplers: dict[str, Sampling]) -> None:
    """The same latents, or the comparison means nothing."""
    answers = {name: sampling.latents().float() for name, sampling in samplers.items()}
    expected = answers[REFERENCE]
    exact = DTYPES[samplers[REFERENCE].case.dtype] is None
    limit = (1e-4 if exact else 0.1) * expected.abs().max()
    for name, answer in answers.items():
        if not (answer - expected).abs().max() <= limit:
            raise SystemExit(f"{name} samples something else than {REFERENCE}")


# --- the contenders --------------------------------------------------------------------------


def ours(
    case: Case, unet: Network, noise: Tensor, cond: Tensor, uncond: Tensor
) -> Callable[[], Tensor]:
    objective = Objective(schedule=ScaledLinear(), prediction=Eps())
    sampler = get_sampler("ddim")

    def draw() -> Tensor:
        levels = sampler.grid(objective.schedule, steps=case.steps)
        told, untold = Conditioning(cond), Conditioning(uncond)
        denoise = cfg(Denoiser(unet, objective), told, untold, scale=case.guidance)
        return sampler.solve(denoise, sampler.start(noise, levels), levels, eta=0.0)

    return draw


def calls_only(unet: nn.Module) -> Network:
    return lambda x, t, context, mask: unet(x, t, context, mask)


def theirs(
    case: Case, unet: Any, noise: Tensor, cond: Tensor, uncond: Tensor
) -> Callable[[], Tensor]:
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # its advice about the missing safety checker
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    pipeline: Any = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    side = FACTOR * noise.shape[-1]
    return lambda: pipeline(
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        latents=noise,
        height=side,
        width=side,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        output_type="latent",
        return_dict=False,
    )[0]


# --- printing --------------------------------------------------------------------------------


def table(rows: list[Row], *, header: bool) -> str:
    lines = []
    if header:
        lines.append(
            f"{'network':8}{'dtype':6}{'batch':>5}  {'contender':20}{'ms (quartiles)':>26}"
            f"{'speed (quartiles)':>23}{'outside':>9}{'rounds':>8}"
        )
    for r in rows:
        took = f"{r.median_ms:.1f} ({r.quartiles_ms[0]:.1f}-{r.quartiles_ms[1]:.1f})"
        speed = f"{r.speed:.3f} ({r.speed_quartiles[0]:.3f}-{r.speed_quartiles[1]:.3f})"
        lines.append(
            f"{r.size:8}{r.dtype:6}{r.batch:>5}  {r.contender:20}{took:>26}"
            f"{speed:>23}{100 * r.outside:>8.1f}%{r.rounds:>8}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
