"""What would a run on many GPUs and billions of pairs take? The tables of docs/scaling.md.

    python benchmarks/scaling.py [--write] [--measure]

Prints the tables; --write puts them and the plot into the page; --measure times on this machine
what is measured and not derived: index files and checkpoint writing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from doc_tables import Table, differences, figure, fill
from scaling_model import (
    A100,
    DECODED,
    DISK,
    H100,
    INDEX_BYTES,
    INTERRUPTION,
    JPEG,
    LATENTS_READ,
    MOSAIC,
    OPENED,
    PAIRS,
    REPOSITORY,
    SD14_STEPS,
    SD15_SAMPLES,
    SHARD,
    TOKENS,
    WALKED,
    Job,
    encode_s,
    mosaic_encoders,
    mosaic_hours,
    result,
    sampling_trace,
    sd14_hours,
    speed,
)

from ldm.training.estimate import kernels_s
from ldm.training.estimate_gpus import GIB, PER_NODE, find_gpu

PAGE = REPOSITORY / "docs" / "scaling.md"
PLOT = REPOSITORY / "docs" / "images" / "scaling.svg"


# -- the tables -----------------------------------------------------------------------------------


def throughput() -> Table:
    """Images a second by number of GPUs and batch; the share of the proportional speed."""
    cases = [(n, 2048) for n in (1, 8, 64, 256, 1024)] + [(1024, 8192), (1024, 65_536)]
    heads = [f"{gpu}, {size} px" for size in (256, 512) for gpu in ("A100", "H100")]
    rows = []
    for devices, batch in cases:
        cells = [f"{devices:,}", f"{batch:,}"]
        for size in (256, 512):
            for gpu in (A100, H100):
                found = result(Job(size, devices, batch, gpu)).images_per_s
                single = result(Job(size, 1, batch, gpu)).images_per_s
                cells.append(f"{figure(found)} ({found / devices / single:.0%})")
        rows.append(cells)
    return Table(["GPUs", "batch", *heads], rows)


def recipe() -> Table:
    """The schedule of SD 1.5 (485 M images at 256 px, then 2.67 B at 512 px)."""
    rows = []
    for devices in (8, 64, 256, 1024):
        cells = [f"{devices:,}"]
        for gpu in (A100, H100):
            hours = sum(n / speed(s, devices, gpu) / 3600 for s, n in SD15_SAMPLES.items())
            once = PAIRS / speed(256, devices, gpu) / 86400
            cells += [figure(hours / 24), figure(hours * devices), figure(once)]
        rows.append(cells)
    heads = [
        f"{gpu}: {what}"
        for gpu in ("A100", "H100")
        for what in ("days", "GPU-hours", "5 B pairs, days")
    ]
    return Table(["GPUs", *heads], rows)


def step() -> Table:
    """Where the time of a step of 2,048 goes, 256 px, H100, in milliseconds."""
    rows = []
    for devices in (1, 8, 64, 256, 1024):
        found = result(Job(256, devices, gpu=H100))
        numbers = (*found.seconds.values(), found.seconds_per_step, found.all_reduce_s)
        rows.append([f"{devices:,}", *(figure(1e3 * value) for value in numbers)])
    heads = [*result(Job(256, 1, gpu=H100)).seconds, "step", "all-reduce, in all"]
    return Table(["GPUs", *heads], rows)


def published() -> Table:
    """What others have published, and what the same model says of their runs."""
    rows = []

    def row(what: str, theirs: float, ours: float) -> None:
        rows.append([what, figure(theirs, 4), figure(ours, 4), f"{ours / theirs:.2f}"])

    for size, at, flops, mfu in ((256, 0, 0.543, 0.24), (512, 1, 2.41, 0.28)):
        job = Job(size, 8, gpu="a100-40", network="sd21", micro=16, ema=False)
        row(f"SD 2, {size} px: TFLOP an image", flops, result(job).flops_per_image / 1e12)
        for devices, speeds in MOSAIC.items():
            found = result(replace(job, devices=devices)).images_per_s
            row(f"SD 2, {size} px: images/s on {devices} A100", speeds[at], found)
        row(f"SD 2, {size} px: utilisation on 8 A100, %", 100 * mfu, 100 * result(job).mfu_assumed)
    row("SD 2: A100-hours of the run, 128 GPUs", 5.51 * 24 * 128, mosaic_hours())
    row("SD 2: how much longer with encoders in the step", 1.4, mosaic_encoders())
    row("SD 1.4: A100-hours; encoders in the step, checkpointing, TF32", 150_000, sd14_hours())
    ours = sum(256 * n * 2048 / speed(s, 256, "a100-40") / 3600 for s, n in SD14_STEPS.items())
    rows.append(["SD 1.4: the same in bf16, from cached latents", "", figure(ours, 4), ""])
    return Table(["", "published", "predicted", "ratio"], rows)


def memory() -> Table:
    """GiB on one GPU, SD 1.5 and 2.1, bf16, cached latents."""
    jobs = {
        "SD 1.5, 256 px × 64": Job(256, 1),
        "SD 1.5, 512 px × 16": Job(512, 1),
        "the same, checkpointing": Job(512, 1, checkpointing=True),
        "SD 2.1, 512 px × 16": Job(512, 1, network="sd21"),
    }
    heads = list(result(Job(256, 1)).memory)
    heads.remove("frozen encoders")
    rows = []
    for name, job in jobs.items():
        found = result(job)
        items = [figure(found.memory[head] / GIB) for head in heads]
        rows.append([name, *items, figure(found.memory_total / GIB)])
    return Table(["", *heads, "total"], rows)


def sharding() -> Table:
    """State on each of 8 GPUs of 80 GiB, and what an optimiser step sends, by parameters."""
    rows = []
    for parameters in (0.86e9, 2.6e9, 4e9, 8e9):
        whole, moments, all_of_it = 20, 8 + 12 / PER_NODE, 20 / PER_NODE
        held = [figure(each * parameters / GIB) for each in (whole, moments, all_of_it)]
        room = 80 - whole * parameters / GIB
        sent = [f"{figure(2 * 4 * parameters / 1e9)}", f"{figure(3 * 4 * parameters / 1e9)}"]
        rows.append([f"{parameters / 1e9:.2g} B", *held, figure(room) if room > 0 else "–", *sent])
    heads = [
        "DDP, GiB",
        "ZeRO-1 over 8",
        "FSDP over 8",
        "left of 80 GiB (DDP)",
        "sent: DDP, GB",
        "FSDP, GB",
    ]
    return Table(["parameters", *heads], rows)


def data() -> Table:
    """5 B pairs in each form, and feeding 1,024 H100s at the speed they would have."""
    forms = {
        "JPEG, 256 px": (JPEG[256], 256, DECODED),
        "JPEG, 512 px": (JPEG[512], 512, DECODED),
        "latents, 256 px": (2 * 8 * 32 * 32, 256, LATENTS_READ),
        "latents, 512 px": (2 * 8 * 64 * 64, 512, LATENTS_READ / 4),
        "latents and contexts, 256 px": (2 * 8 * 32 * 32 + 2 * TOKENS * 768, 256, None),
    }
    rows = []
    for name, (size_bytes, size, rate) in forms.items():
        speed = result(Job(size, 1024, 65_536, H100)).images_per_s
        node = size_bytes * speed / 1024 * PER_NODE
        rows.append(
            [
                name,
                figure(size_bytes / 1e3),
                figure(PAIRS * size_bytes / 1e12),
                figure(SHARD * size_bytes / 1e6),
                figure(size_bytes * speed / 1e9),
                figure(node / 1e6),
                figure(speed / 1024 / rate, 2) if rate else "",
            ]
        )
    heads = ["KB a pair", "TB in all", "MB a shard", "GB/s in all", "MB/s a machine", "cores a GPU"]
    return Table(["", *heads], rows)


def start() -> Table:
    """What 5 B pairs ask before the first step."""
    rows = [
        ["shards of 10,000 pairs", figure(PAIRS / SHARD)],
        ["index files beside them, GB", figure(PAIRS * INDEX_BYTES / 1e9)],
        ["made once, core-hours", figure(PAIRS / WALKED / 3600, 2)],
        ["read at every start by every process, minutes", figure(PAIRS / OPENED / 60, 2)],
        ["kept by every process with a filter on, GB for each billion pairs", figure(4)],
    ]
    return Table(["", "5 B pairs"], rows)


def encoders() -> Table:
    """Encoding in every step, or once."""
    rows = []
    for size in (256, 512):
        for gpu in (A100, H100):
            vae, text = encode_s(size, gpu)
            train = 1 / result(Job(size, 8, gpu=gpu)).images_per_s * 8
            hours = PAIRS * (vae + text) / 3600
            rows.append(
                [
                    f"{size} px, {'A100' if gpu == A100 else 'H100'}",
                    figure(1e3 * train),
                    figure(1e3 * vae),
                    figure(1e3 * text, 2),
                    f"{(train + vae + text) / train:.2f}×",
                    figure(hours),
                    figure(PAIRS * train / 3600),
                ]
            )
    heads = [
        "step, ms an image",
        "VAE",
        "text",
        "together",
        "encode 5 B once, GPU-hours",
        "train on 5 B once",
    ]
    return Table(["", *heads], rows)


def interruptions() -> Table:
    """How often something breaks, and what checkpoints then cost."""
    size = 4 * result(Job(256, 1)).memory["weights"]
    write = size / DISK
    rows = []
    for devices in (8, 64, 256, 1024):
        between = INTERRUPTION / devices * 3600
        interval = (2 * write * between) ** 0.5  # Young 1974: the best first-order interval
        lost = write / interval + interval / 2 / between
        samples = interval * result(Job(512, devices, gpu=H100)).images_per_s
        rows.append(
            [f"{devices:,}", figure(between / 3600), figure(interval / 60)]
            + [figure(samples / 1e6), f"{100 * lost:.2f}"]
        )
    heads = ["hours between", "save every, minutes", "samples (512 px), M", "lost, %"]
    return Table(["GPUs", *heads], rows)


def pauses() -> Table:
    """What sampling and validation take of every 2,048,000 samples at 512 px on H100s."""
    gpu = find_gpu(H100)
    rows = []
    for devices in (8, 64, 256, 1024):
        drawn = 2 * -(-4 // devices)  # rows of guidance, of this rank's share of 4 prompts
        sampling = 50 * kernels_s(sampling_trace(drawn, 512).forward, gpu)
        batches = -(-512 // devices // 16) or 1
        validation = batches * kernels_s(sampling_trace(16, 512).forward, gpu)
        writing = 4 * result(Job(256, 1)).memory["weights"] / DISK
        between = 2_048_000 / result(Job(512, devices, gpu=H100)).images_per_s
        share = (sampling + validation + writing) / between
        numbers = (between, sampling, validation, writing, 100 * share)
        rows.append([f"{devices:,}", *(figure(value) for value in numbers)])
    heads = ["seconds between", "4 pictures", "512 validated", "checkpoint", "share, %"]
    return Table(["GPUs", *heads], rows)


TABLES: dict[str, Callable[[], Table]] = {
    function.__name__: function
    for function in (
        throughput,
        recipe,
        step,
        published,
        memory,
        sharding,
        data,
        start,
        encoders,
        interruptions,
        pauses,
    )
}


def problems() -> list[str]:
    """Where the page differs from what is derived now."""
    return differences(PAGE.read_text(), {n: make() for n, make in TABLES.items()}, within=0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md, and the plot")
    parser.add_argument("--measure", action="store_true", help="index files and checkpoints, here")
    args = parser.parse_args()
    if args.measure:
        from scaling_measure import measure

        print(measure())
        return
    tables = {name: make() for name, make in TABLES.items()}
    for name, table in tables.items():
        print(f"{name}: {TABLES[name].__doc__}\n\n{table.markdown()}")
    if args.write:
        from scaling_plot import plot

        PAGE.write_text(fill(PAGE.read_text(), tables))
        plot(PLOT)


if __name__ == "__main__":
    main()
