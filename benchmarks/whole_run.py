"""How long is a whole small run, from pictures to weights, beside diffusers' example script?

    OMP_NUM_THREADS=1 python benchmarks/whole_run.py [--script train_text_to_image.py] [--quick]

The same pictures (drawn shapes), the packed-in model (its weights exported as a diffusers folder,
answers compared first), batch 32, AdamW, clipping, EMA. Every run is a process of its own, from the
command line to the weights on disk, indexing and caching included, by the wall clock and in CPU
time of all its processes. Two lengths give what a step costs when it runs, and what the start
costs; other lengths are computed from these. `--script` is their script from a checkout of yours
(it needs `accelerate` and `datasets`); without it, and beside it, runs `their_loop.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import reporting
import torch
from doc_tables import Table, figure
from PIL import Image
from safetensors.torch import save_file

from ldm.models.vae import VAEConfig, build_vae

HERE = Path(__file__).parent
SCRIPTS = HERE.parent / "scripts"
BATCH = 32
SMALL = 32  # px of stored pictures that are PNGs, as make_shards draws them; others are JPEGs
VAES = {32: (32, 64, 64), 64: (32, 64, 64, 64)}  # px of training -> widths; latents are 8 x 8
SHOWN = (4, 20)  # epochs of the table
STOCK = ("diffusers' script", "diffusers' loop")  # the first that has run is what others beat
Line = list[str]


@dataclass(frozen=True)
class Case:
    """Where everything is. pictures: how many; side_px: as they are stored; size_px: as they are
    trained on, by a VAE of that many levels."""

    place: Path
    pictures: int
    side_px: int
    size_px: int
    threads: int
    script: Path | None

    @property
    def shards(self) -> Path:
        return self.place / "shards"

    @property
    def folder(self) -> Path:
        return self.place / "folder"

    @property
    def model(self) -> Path:
        return self.place / "model"


# -- who runs -------------------------------------------------------------------------------------


def ours(case: Case, out: Path, samples: int, *, precision: str, disk: bool) -> list[Line]:
    """Ours: caches in memory, or latents made first (disk)."""
    shards, first = case.shards, []
    encoded = [
        f"models.vae_weights={case.model}",
        f"models.vae.block_out_channels=[{','.join(map(str, VAES[case.size_px]))}]",
        f"data.size={case.size_px}",
    ]
    caches = ["training.cache_latents=16384", "training.cache_captions=256"]
    if disk:
        shards = out / "latents"
        line = [f"data.train.shards={case.shards}", f"out={shards}", "contexts=true", *encoded]
        first = [[_script("cache_latents"), *line, "batch_size=32", "device=cpu"]]
        caches = ["data.format=latents", "training.cache_latents=0", "training.cache_captions=0"]
    return [
        *first,
        [
            _script("train"),
            "experiment=quickstart",
            f"init_from={case.model}",
            *encoded,
            f"data.train.shards={shards}",
            f"run_dir={out / 'run'}",
            f"training.max_samples={samples}",
            f"training.batch_size={BATCH}",
            f"training.save_every={samples}",
            "training.optim.warmup=0",
            "training.val_every=null",
            "training.sample_every=null",
            "training.callbacks.evaluation.every=null",
            "training.trainer.accelerator=cpu",
            f"training.trainer.threads={case.threads}",
            f"training.trainer.precision={precision}",
            *caches,
        ],
    ]


def their_loop(case: Case, out: Path, samples: int, *, best: bool) -> list[Line]:
    """Their procedure in our words. best: bf16, one worker, EMA in one call."""
    line = [str(HERE / "their_loop.py"), f"--model={case.model}", f"--data={case.folder}"]
    line += [f"--out={out}", f"--steps={samples // BATCH}", f"--size={case.size_px}"]
    return [line + ["--precision=bf16", "--foreach", "--workers=1"] * best]


def their_script(case: Case, out: Path, samples: int, *, best: bool) -> list[Line]:
    """Their script, with its defaults but EMA; best as above."""
    line = [str(HERE / "their_script.py"), str(case.script), "--use_ema", "--center_crop"]
    line += [f"--pretrained_model_name_or_path={case.model}", f"--train_data_dir={case.folder}"]
    line += [f"--output_dir={out}", f"--cache_dir={out / 'cache'}", f"--resolution={case.size_px}"]
    line += [f"--train_batch_size={BATCH}", f"--max_train_steps={samples // BATCH}"]
    faster = ["--mixed_precision=bf16", "--foreach_ema", "--dataloader_num_workers=1"]
    return [line + faster * best]


CONTENDERS: dict[str, Any] = {
    "ours, bf16": (ours, {"precision": "bf16-mixed", "disk": False}),
    "ours, bf16, latents made first": (ours, {"precision": "bf16-mixed", "disk": True}),
    "ours, fp32": (ours, {"precision": "32-true", "disk": False}),
    "diffusers' loop": (their_loop, {"best": False}),
    "diffusers' loop, bf16": (their_loop, {"best": True}),
    "diffusers' script": (their_script, {"best": False}),
    "diffusers' script, bf16": (their_script, {"best": True}),
}
QUICK = ("ours, bf16", "diffusers' loop")


def _script(name: str) -> str:
    return str(SCRIPTS / f"{name}.py")


# -- what they run on -----------------------------------------------------------------------------


def prepare(case: Case) -> None:
    """Shards and a folder of the same pictures, and the model as a diffusers folder."""
    drawn = case.place / "drawn" if case.side_px != SMALL else case.shards
    make = [f"data.count={case.pictures}", f"data.side_px={case.side_px}", f"out={drawn}"]
    _run([_script("make_shards"), "source=shapes", *make], case)
    if drawn != case.shards:
        _as_jpeg(drawn, case.shards)
    _unpack(case.shards, case.folder)
    export = ["input=tiny", f"output={case.model}", "format=diffusers", "verify=false"]
    _run([_script("convert"), *export], case)
    if VAES[case.size_px] != VAES[SMALL]:
        _another_vae(case.model / "vae", VAES[case.size_px])


def _another_vae(folder: Path, widths: tuple[int, ...]) -> None:
    """An untrained autoencoder in its place: what it takes does not depend on what it knows."""
    config = json.loads((folder / "config.json").read_text())
    config["block_out_channels"] = widths
    for end, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        config[f"{end}_block_types"] = [kind] * len(widths)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    names = {field.name for field in fields(VAEConfig)} & set(config)
    vae = build_vae(VAEConfig(**{name: config[name] for name in names}))
    (weights,) = folder.glob("*.safetensors")
    save_file(vae.state_dict(), weights)


def _members(shards: Path) -> Iterator[tuple[str, str, bytes]]:
    """(key, extension, bytes) of all shards in their order."""
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                key, _, ext = member.name.partition(".")
                yield key, ext, file.read()


def _as_jpeg(source: Path, target: Path) -> None:
    """One shard of the same samples with JPEGs, what large pictures usually are."""
    target.mkdir()
    with tarfile.open(target / "shard-00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, ext, data in _members(source):
            if ext == "png":
                buffer = io.BytesIO()
                Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "JPEG", quality=90)
                ext, data = "jpg", buffer.getvalue()
            info = tarfile.TarInfo(f"{key}.{ext}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _unpack(shards: Path, folder: Path) -> None:
    """Pictures as files, with the metadata.jsonl that `datasets` reads."""
    folder.mkdir()
    rows: dict[str, dict[str, str]] = {}
    for key, ext, data in _members(shards):
        if ext in ("png", "jpg"):
            (folder / f"{key}.{ext}").write_bytes(data)
            rows.setdefault(key, {})["file_name"] = f"{key}.{ext}"
        elif ext == "txt":
            rows.setdefault(key, {})["text"] = data.decode()
    lines = "".join(json.dumps(row) + "\n" for row in rows.values())
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def differences(model: Path, size_px: int) -> dict[str, float]:
    """Largest difference between our answers and those of their classes on the exported folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    import ldm

    mine = ldm.load(str(model))
    captions = ["a small red circle", "a large blue star"]
    noise = torch.rand(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    pixels = noise * 2 - 1
    vae: Any = AutoencoderKL.from_pretrained(model, subfolder="vae")
    unet: Any = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    text = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    ids = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")(
        captions, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.inference_mode():
        context, t = mine.text.encode(captions).context, torch.tensor([10.0, 500.0])
        x = mine.codec.moments(pixels)[:, : mine.codec.latent_channels]
        pairs = {
            "latents": (x, vae.encode(pixels).latent_dist.mean),
            "contexts": (context, text(ids, return_dict=False)[0]),
            "network": (mine.unet(x, t, context), unet(x, t, context, return_dict=False)[0]),
        }
    return {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


# -- measuring ------------------------------------------------------------------------------------


def _run(line: Line, case: Case) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(case.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, *line], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join(line)}\n{done.stderr[-3000:]}")


def timed(lines: Sequence[Line], case: Case) -> dict[str, float]:
    """Seconds of these command lines one after the other: wall, and CPU of all processes."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for line in lines:
        _run(line, case)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu}


def measure(case: Case, names: Sequence[str], lengths: Sequence[int], rounds: int) -> list[Any]:
    """Every contender at every length (epochs), in turns whose order rotates: rows of times."""
    rows = []
    for number in range(rounds):
        turn = list(names[number % len(names) :]) + list(names[: number % len(names)])
        for name in turn:
            build, options = CONTENDERS[name]
            for epochs in lengths:
                with tempfile.TemporaryDirectory(dir=case.place) as out:
                    lines = build(case, Path(out), case.pictures * epochs, **options)
                    found = timed(lines, case)
                rows.append({"contender": name, "epochs": epochs, "round": number, **found})
                print(json.dumps(rows[-1]), flush=True)
    return rows


# -- the tables -----------------------------------------------------------------------------------


def parts(report: dict[str, Any], name: str, clock: str) -> tuple[float, float]:
    """(start, epoch) in seconds: a run of n epochs takes start + n x epoch. Medians of rounds."""
    by_epochs: dict[int, list[float]] = {}
    for row in report["rows"]:
        if row["contender"] == name:
            by_epochs.setdefault(row["epochs"], []).append(row[clock])
    (short, a), (long, b) = sorted((n, statistics.median(v)) for n, v in by_epochs.items())
    epoch = (b - a) / (long - short)
    return a - short * epoch, epoch


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """Start, step and whole run of every contender; speed against stock."""
    names = list(dict.fromkeys(row["contender"] for row in report["rows"]))
    stock = next(name for name in STOCK if name in names)
    steps = report["settings"]["pictures"] // BATCH
    measured = {row["epochs"] for row in report["rows"]}
    heads = ["clock", "start and caches, s", "step, ms", "step: speed"]
    for epochs in SHOWN:
        mark = "" if epochs in measured else ", computed"
        heads += [f"{epochs} epochs{mark}, s", "speed"]
    lines = []
    for name in names:
        for clock in ("wall", "cpu"):
            (start, epoch), (start0, epoch0) = (parts(report, n, clock) for n in (name, stock))
            if min(epoch, epoch0) <= 0:  # the longer run was the shorter one
                lines.append([name, clock, *["too noisy"] * (len(heads) - 1)])
                continue
            cells = [figure(start), figure(1e3 * epoch / steps), f"{epoch0 / epoch:.2f}"]
            for n in SHOWN:
                whole, stock_whole = start + n * epoch, start0 + n * epoch0
                cells += [figure(whole), f"**{stock_whole / whole:.2f}**"]
            lines.append([name, clock, *cells])
    return {_table_name(report): Table(["contender", *heads], lines)}


def _table_name(report: dict[str, Any]) -> str:
    side = report["settings"]["side_px"]
    return "whole-run" if side == SMALL else f"whole-run-{side}"


def main() -> None:
    args = parse()
    lengths = (1, 3) if args.quick else (1, args.epochs)
    names = [n for n in args.contenders if args.script or not n.startswith("diffusers' script")]
    with tempfile.TemporaryDirectory() as place:
        case = Case(Path(place), args.pictures, args.side, args.size, args.threads, args.script)
        prepare(case)
        apart = differences(case.model, args.size)
        print("largest relative differences", apart)
        if max(apart.values()) > 1e-3:
            raise SystemExit("ours and theirs do not agree; times would say nothing")
        rows = measure(case, names, lengths, args.rounds)
    made = reporting.new(
        "whole_run",
        device="cpu",
        threads=args.threads,
        settings={
            "pictures": args.pictures,
            "side_px": args.side,
            "size_px": args.size,
            "differences": apart,
        },
        rows=rows,
        line=_without_folder(sys.argv[1:], args.script),
    )
    reporting.finish(made, tables(made), args.out)


def _without_folder(line: list[str], script: Path | None) -> list[str]:
    """The command line with no folder of this machine in it."""
    return [script.name if script and word == str(script) else word for word in line]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", type=Path, help="diffusers' train_text_to_image.py")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--pictures", type=int, default=2048, help=f"a multiple of {BATCH}")
    parser.add_argument("--side", type=int, default=SMALL, help="px of the stored pictures")
    parser.add_argument("--size", type=int, default=32, choices=list(VAES), help="px of training")
    parser.add_argument("--epochs", type=int, default=4, help="of the longer run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="128 pictures, two contenders")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.pictures, args.contenders = 128, list(QUICK)
    if args.pictures % BATCH or args.pictures < BATCH:
        parser.error(f"--pictures {args.pictures}: give a multiple of {BATCH}")
    if args.epochs < 2:
        parser.error(f"--epochs {args.epochs}: the longer run has at least 2")
    return args


if __name__ == "__main__":
    main()
