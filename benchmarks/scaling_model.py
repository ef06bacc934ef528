"""What do the pages about large runs assume, and what does the estimate say of a run?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
import yaml
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.models.text.clip import clip_l_config
from ldm.models.text.openclip import SD2_LAYERS, openclip_h_config
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig
from ldm.training.estimate import Estimate, estimate, kernels_s
from ldm.training.estimate_gpus import find_gpu
from ldm.training.estimate_trace import Trace, on_meta, trace_forward, trace_step

REPOSITORY = Path(__file__).parents[1]

PAIRS = 5e9
TOKENS = 77
A100, H100 = "a100-80", "h100"
MICRO = {256: 64, 512: 16}  # images a forward at most: what conf/experiment/sd15*.yaml have

# measured here, on one core of a busy 2-core machine (--measure), and docs/performance.md
DECODED = 596  # JPEGs of 512 px to 256 px, a second and core
LATENTS_READ = 23_900  # cached moments of 256 px, a second and core
INDEX_BYTES = 77  # of the index files, a sample
WALKED = 20_000  # samples a second and core whose place in a shard is found for the first time
OPENED = 2_400_000  # samples a second and core whose index file is read at a start

# assumed
JPEG = {256: 25e3, 512: 80e3}  # bytes a pair; LAION-400M at 256 px: 10 TB for 413 M
SHARD = 10_000  # samples a shard, as img2dataset writes them
DISK = 1e9  # bytes a second of a shared file system, for checkpoints
INTERRUPTION = 16_384 * 54 * 24 / 419  # GPU-hours between two (Llama 3 405B: 419 in 54 days)

# published: SD 2 on A100s (images a second at 256 and 512 px); mosaicml/diffusion's README
MOSAIC = {8: (1100, 290), 16: (2180, 585), 32: (4080, 1195), 64: (8530, 2340), 128: (11600, 4590)}
MOSAIC_IMAGES = {256: 1_126_400_000, 512: 1_740_800_000}
SD14_STEPS = {256: 237_000, 512: 194_000 + 515_000 + 225_000}  # of 2,048; its model card
SD15_SAMPLES = {256: 485_376_000, 512: 2_670_592_000}  # conf/experiment/sd15_256.yaml, sd15.yaml


# -- what the model says --------------------------------------------------------------------------


@cache
def unet(name: str) -> UNetConfig:
    node = yaml.safe_load((REPOSITORY / f"conf/models/unet/{name}.yaml").read_text())
    del node["_target_"]
    return replace(UNetConfig(**node), upcast_attention=False)  # as SD 2 base and SD 1


@dataclass(frozen=True)
class Job:
    """A run of a global batch."""

    size: int
    devices: int
    batch: int = 2048
    gpu: str = A100
    network: str = "sd15"
    micro: int | None = None
    ema: bool = True
    checkpointing: bool = False

    @property
    def micro_batch(self) -> int:
        return min(self.micro or MICRO[self.size], self.batch // self.devices)

    @property
    def accumulate(self) -> int:
        return self.batch // self.devices // self.micro_batch


@cache
def result(job: Job) -> Estimate:
    return estimate(
        unet(job.network),
        latent_size=(job.size // 8, job.size // 8),
        micro_batch=job.micro_batch,
        accumulate=job.accumulate,
        tokens=TOKENS,
        ema=job.ema,
        devices=job.devices,
        gpu=job.gpu,
        checkpointing=job.checkpointing,
    )


@cache
def encoder_traces(size: int, clip: str) -> tuple[Trace, Trace]:
    """The VAE's encoder on 8 pictures, the text encoder on 64 captions, both in bf16."""
    config = clip_l_config() if clip == "clip_l" else openclip_h_config()
    if clip != "clip_l":
        config = CLIPTextConfig.from_dict({**config.to_dict(), "num_hidden_layers": SD2_LAYERS})
    with on_meta():
        vae = AutoencoderKL(VAEConfig()).bfloat16()
        text = CLIPTextModel(config).bfloat16()
        pixels = torch.empty(8, 3, size, size, dtype=torch.bfloat16)
        tokens = torch.zeros(64, TOKENS, dtype=torch.long)
    return trace_forward(lambda: vae.encode(pixels)), trace_forward(lambda: text(tokens))


def encode_s(size: int, gpu: str, clip: str = "clip_l") -> tuple[float, float]:
    """Seconds that the VAE and the text encoder take for one pair."""
    vae, text = encoder_traces(size, clip)
    device = find_gpu(gpu)
    return kernels_s(vae.forward, device) / 8, kernels_s(text.forward, device) / 64


@cache
def sampling_trace(rows: int, size: int) -> Trace:
    with on_meta():
        network = UNet(unet("sd15"))
        x, t = torch.empty(rows, 4, size // 8, size // 8), torch.empty(rows)
        context = torch.empty(rows, TOKENS, 768)
    return trace_forward(lambda: network(x, t, context), dtype=torch.bfloat16)


def speed(size: int, devices: int, gpu: str) -> float:
    """Images a second of SD 1.5 with batches of 2,048."""
    return result(Job(size, devices, gpu=gpu)).images_per_s


def mosaic_hours() -> float:
    jobs = {s: Job(s, 128, gpu="a100-40", network="sd21", micro=16, ema=False) for s in (256, 512)}
    return sum(128 * n / result(jobs[s]).images_per_s / 3600 for s, n in MOSAIC_IMAGES.items())


def mosaic_encoders() -> float:
    plain = extra = 0.0
    for size, images in MOSAIC_IMAGES.items():
        job = Job(size, 8, gpu="a100-40", network="sd21", micro=16, ema=False)
        plain += images * 8 / result(job).images_per_s
        extra += images * sum(encode_s(size, "a100-40", "openclip_h"))
    return 1 + extra / plain


def sd14_hours() -> float:
    """256 GPUs of 2 x 4 images, all in fp32 with TF32 products; the texts count for nothing."""
    gpu, seconds = replace(find_gpu("a100-40"), single=156e12), 0.0
    for size, steps in SD14_STEPS.items():
        config = replace(unet("sd15"), checkpointing=True)
        with on_meta():
            network, side = UNet(config), size // 8
            x, t = torch.empty(4, 4, side, side), torch.empty(4)
            context, vae = torch.empty(4, TOKENS, 768), AutoencoderKL(VAEConfig())
            pixels = torch.empty(4, 3, size, size)
        traces = [
            trace_step(network, partial(network, x, t, context)),
            trace_forward(partial(vae.encode, pixels)),
        ]
        ops = [op for trace in traces for op in (*trace.forward, *trace.backward)]
        seconds += steps * 2048 / 4 * kernels_s(ops, gpu, dtype="fp32")
    return seconds / 3600
