"""How fast do we sample beside diffusers' StableDiffusionPipeline, with the same weights?

    python benchmarks/sample.py [--quick] [--out FILE.json] [--sizes tiny mini] [--batches 1 8]
                                [--dtypes fp32 bf16] [--device auto] [--steps 50]
                                [--guidance 7.5] [--tokens 77] [--seconds 60] [--clock wall]

From contexts and start noise to latents, DDIM with guidance, the same numbers in all (checked
first). Ours and diffusers' take turns in every dtype, one sampling each, in an order that rotates:
what else the machine does meets all of them. The weights are in the dtype, as both load them.
`same` is the median over rounds of diffusers/it in its own dtype, `stock` of diffusers in fp32/it:
above 1 is faster. `--unprepared` adds ours with `Pipeline.prepare` off. Threads: OMP_NUM_THREADS.
`--clock cpu` counts this process's CPU time, which leaves out the waiting on a busy machine: for
one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reporting
import torch
from doc_tables import Table, spread
from networks import OURS, REFERENCE, network, shape
from torch import Tensor, nn

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import Eps
from ldm.diffusion.schedules import ScaledLinear
from ldm.pipeline.noise import Noise
from ldm.pipeline.options import SamplingDefaults, SamplingOptions
from ldm.pipeline.solving import Model, solve
from ldm.types import Conditioning

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIMITS = {"fp32": 1e-4, "bf16": 0.1}  # of the largest latent: how far a contender may be
UNPREPARED = "ours, unprepared"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FACTOR = 8  # pixels a latent position that diffusers assumes where it has no VAE


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is sampled. batch: pictures; tokens: text positions."""

    size: str
    batch: int
    device: str
    steps: int
    guidance: float
    tokens: int
    clock: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. ms: of one sampling; same, stock: see above, with quartiles."""

    size: str
    batch: int
    dtype: str
    contender: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    same: float
    same_quartiles: tuple[float, float]
    stock: float
    stock_quartiles: tuple[float, float]
    rounds: int


def main() -> None:
    args = parse()
    whose = [OURS, *([UNPREPARED] if args.unprepared else []), REFERENCE]
    rows: list[Row] = []
    keys = ("steps", "guidance", "tokens", "clock")
    settings = {key: getattr(args, key) for key in keys}
    for size in args.sizes:
        for batch in args.batches:
            case = Case(size=size, batch=batch, device=args.device, **settings)
            new = measure(case, whose, args.dtypes, seconds=args.seconds)
            print(lines(new, header=not rows), flush=True)
            rows += new
    made = reporting.new("sample", device=args.device, threads=0, settings=settings, rows=rows)
    reporting.finish(made, tables(made), args.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the report goes, as JSON")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mini"], choices=["tiny", "mini"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="pictures at once")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--tokens", type=int, default=77, help="text positions; 77 in SD 1")
    parser.add_argument("--seconds", type=float, default=60.0, help="at least, a case")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--unprepared", action="store_true", help="ours as it is, as well")
    parser.add_argument(
        "--quick", action="store_true", help="--sizes tiny --batches 1 --seconds 10"
    )
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.clock == "cpu" and (args.device != "cpu" or torch.get_num_threads() != 1):
        parser.error("--clock cpu is for one thread of a CPU; set OMP_NUM_THREADS=1, --device cpu")
    if "fp32" not in args.dtypes:
        parser.error("--dtypes without fp32, in which the others are compared and checked")
    if args.quick:
        args.seconds, args.sizes, args.batches = 10.0, ["tiny"], [1]
    return args


# --- measuring -------------------------------------------------------------------------------


def measure(case: Case, whose: list[str], dtypes: list[str], *, seconds: float) -> list[Row]:
    """Every contender on one case, after a check that they sample the same."""
    samplings = {(who, dtype): Sampling(case, who, dtype) for dtype in dtypes for who in whose}
    agree({key: sampling.draw() for key, sampling in samplings.items()})
    times: dict[tuple[str, str], list[float]] = {key: [] for key in samplings}
    order, end = list(samplings), time.monotonic() + seconds
    while len(times[order[0]]) < 3 or time.monotonic() < end:
        for key in order:
            times[key].append(samplings[key].timed())
        order = order[1:] + order[:1]
    return [row(case, key, times) for key in samplings]


def row(case: Case, key: tuple[str, str], times: Mapping[tuple[str, str], list[float]]) -> Row:
    who, dtype = key
    own = times[key]
    low, middle, high = statistics.quantiles([1e3 * t for t in own], n=4)
    speeds = []
    for other in (dtype, "fp32"):
        paired = zip(own, times[REFERENCE, other], strict=True)
        speeds.append(statistics.quantiles([b / a for a, b in paired], n=4))
    (same_low, same, same_high), (stock_low, stock, stock_high) = speeds
    return Row(
        size=case.size,
        batch=case.batch,
        dtype=dtype,
        contender=who,
        median_ms=middle,
        quartiles_ms=(low, high),
        same=same,
        same_quartiles=(same_low, same_high),
        stock=stock,
        stock_quartiles=(stock_low, stock_high),
        rounds=len(own),
    )


class Sampling:
    """One contender with the noise and the contexts that all of them are given."""

    def __init__(self, case: Case, who: str, dtype: str) -> None:
        self.device = torch.device(case.device)
        self.now = CLOCKS[case.clock]
        unet, _ = network(case.size, REFERENCE if who == REFERENCE else OURS)
        unet.to(self.device).eval().to(DTYPES[dtype])
        config = shape(case.size)
        rng = torch.Generator().manual_seed(1)
        side = config.sample_size
        noise = torch.randn(case.batch, config.in_channels, side, side, generator=rng)
        texts = (2, case.batch, case.tokens, config.cross_attention_dim or 0)
        cond, uncond = torch.randn(texts, generator=rng).to(self.device)
        inputs = noise.to(self.device), cond, uncond
        if who == REFERENCE:
            self._draw = theirs(case, unet, *(x.to(DTYPES[dtype]) for x in inputs))
        else:
            self._draw = ours(case, unet, *inputs, prepare=who == OURS)

    @torch.inference_mode()
    def draw(self) -> Tensor:
        """The latents, fp32."""
        return self._draw().float()

    def timed(self) -> float:
        """Seconds of one sampling."""
        self._wait()
        begin = self.now()
        self.draw()
        self._wait()
        return self.now() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def agree(latents: Mapping[tuple[str, str], Tensor]) -> None:
    """The same latents, or the comparison means nothing."""
    expected = latents[REFERENCE, "fp32"]
    for (who, dtype), answer in latents.items():
        away = ((answer - expected).abs().max() / expected.abs().max()).item()
        if not away <= LIMITS[dtype]:
            raise SystemExit(
                f"{who} in {dtype} samples something else than {REFERENCE}: {away:.2g} of the "
                f"largest latent away, allowed {LIMITS[dtype]:g}"
            )


# --- the contenders --------------------------------------------------------------------------


def ours(
    case: Case, unet: nn.Module, noise: Tensor, cond: Tensor, uncond: Tensor, *, prepare: bool
) -> Callable[[], Tensor]:
    objective = Objective(schedule=ScaledLinear(), prediction=Eps())
    options = SamplingOptions(sampler="ddim", steps=case.steps, guidance=case.guidance)
    settings = options.settled(SamplingDefaults())
    model = Model(unet, objective, prepare=prepare)
    seeds = Noise(range(case.batch), tuple(noise.shape[1:]), noise.device)
    told, untold = Conditioning(cond), Conditioning(uncond)
    return lambda: solve(model, told, untold, seeds, settings, start=noise)


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


def tables(report: Mapping[str, Any]) -> dict[str, Table]:
    """Ours beside diffusers', for the page."""
    columns = ("network", "batch", "dtype", "ms", "diffusers, same dtype", "diffusers, fp32")
    found = [
        (
            r["size"] if r["contender"] == OURS else f"{r['size']}, unprepared",
            str(r["batch"]),
            r["dtype"],
            spread(r["median_ms"], r["quartiles_ms"], 0),
            spread(r["same"], r["same_quartiles"], 2),
            spread(r["stock"], r["stock_quartiles"], 2),
            str(r["rounds"]),
        )
        for r in report["rows"]
        if r["contender"] != REFERENCE
    ]
    return {"sample": Table((*columns, "rounds"), found)}


def lines(rows: list[Row], *, header: bool) -> str:
    """For the terminal."""
    found = []
    if header:
        found.append(
            f"{'network':8}{'batch':>5} {'dtype':6}{'contender':18}{'ms (quartiles)':>24}"
            f"{'same (quartiles)':>20}{'stock (quartiles)':>20}{'rounds':>8}"
        )
    for r in rows:
        took = spread(r.median_ms, r.quartiles_ms, 1)
        same, stock = spread(r.same, r.same_quartiles, 2), spread(r.stock, r.stock_quartiles, 2)
        found.append(
            f"{r.size:8}{r.batch:>5} {r.dtype:6}{r.contender:18}{took:>24}{same:>20}{stock:>20}"
            f"{r.rounds:>8}"
        )
    return "\n".join(found)


if __name__ == "__main__":
    main()
