"""Do live runs train on the same global batches, on any number of processes and workers?

`test_exactness.py` asks the readers; here processes of DDP (gloo) train a tiny network, and each
notes what it trains on.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Write = Callable[..., Path]
Sample = tuple[int, str]
SERVER = Path(__file__).parents[1] / "faults" / "forks.py"
BATCH = 8
UNEQUAL = (11, 7, 19, 5, 23, 2, 16)  # 83 samples in 7 shards
RUN = (
    "data.size=16",
    "training.max_samples=2ep",
    "training.save_every=null",
    "training.log_every=1000",
    "training.optim.shape=constant",
    "training.optim.warmup=0",
    "resume=auto",
)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield process
    process.communicate(timeout=60)


class Live:
    """A corpus and the runs on it."""

    def __init__(self, server: subprocess.Popen[str], folder: Path, cfg: Callable[..., Any]):
        self.server, self.folder, self.cfg = server, folder, cfg
        self.data: dict[str, Any] = {}
        self.runs = 0

    def run(
        self, world: int, workers: int, *, name: str = "", sigterm_at: int | None = None
    ) -> list[Sample]:
        """What a run of `world` processes trains on, by i; with a name it goes on with that run.

        sigterm_at: the first process gets SIGTERM in this micro-batch.
        """
        self.runs += 1
        notes = self.folder / f"notes-{self.runs}"
        notes.mkdir()
        micro = f"training.micro_batch={max(BATCH // world // 2, 1)}"  # accumulation 2
        cfg = self.cfg(
            self.folder / (name or f"run-{self.runs}"), *RUN, micro, f"data.num_workers={workers}"
        )
        cfg["data"] |= self.data
        cfg["training"]["trainer"]["devices"] = world
        fault: dict[str, Any] = {"kind": "none"}
        if sigterm_at is not None:
            fault = {"kind": "sigterm", "ranks": [0], "micro": sigterm_at, "folder": str(notes)}
        log = self.folder / "log"
        order = {"cfg": cfg, "fault": fault, "log": str(log), "world": world, "notes": str(notes)}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        expected = [0 if sigterm_at is None else 75] * world
        assert json.loads(self.server.stdout.readline()) == expected, log.read_text()[-3000:]
        return sorted(
            (i, key)
            for path in notes.glob("samples-*")
            for line in path.read_text().splitlines()
            for i, key in json.loads(line)
        )


@pytest.fixture
def live(
    server: subprocess.Popen[str],
    tiny_cfg: Callable[..., Any],
    tmp_path: Path,
    write_shard: Write,
    write_latents: Write,
    png: Callable[..., bytes],
    npy: Callable[..., bytes],
) -> Callable[[str, str], Live]:
    """live(layout, kind): 83 samples in 1 or 7 shards, every third picture or latent wide."""

    def corpus(layout: str, kind: str) -> Live:
        latents, sizes = "latents" in kind, kind != "plain"

        def extra(n: int) -> dict[str, bytes]:
            if latents:
                shape = (8, 2, 8) if sizes and n % 3 == 0 else (8, 4, 4)
                values = np.random.default_rng(n).standard_normal(shape)
                return {"moments.npy": npy(values)}
            return {"png": png(n, width=48 if n % 3 == 0 else 12), "json": b"{}"}

        write = write_latents if latents else write_shard
        counts = (83,) if layout == "one shard" else UNEQUAL
        shards = [
            str(write(tmp_path / "s" / f"{n}.tar", count, prefix="abcdefg"[n], extra=extra))
            for n, count in enumerate(counts)
        ]
        found = Live(server, tmp_path, tiny_cfg)
        source = {"_target_": "ldm.data.settings.TrainSource", "shards": shards}
        found.data = {"train": source, "cache_dir": str(tmp_path / "cache")}
        found.data["val"] = {"_target_": "ldm.data.settings.ValSource", "shards": shards[0]}
        found.data["format"] = "latents" if latents else "images"
        if sizes:
            buckets = {"max_aspect": 6.0, "step": 8}
            found.data["buckets"] = {"_target_": "ldm.data.buckets.Buckets", **buckets}
        if kind == "buckets and a mixture":
            more = str(write_shard(tmp_path / "more" / "z.tar", 29, prefix="z", extra=extra))
            found.data["train"] = [{"shards": shards, "weight": 2.0}, {"shards": more}]
        return found

    return corpus


LAYOUTS = ("one shard", "seven shards")
KINDS = ("plain", "buckets and a mixture", "latents in buckets")
QUICK = ("seven shards", "buckets and a mixture")
ALL = list(itertools.product(LAYOUTS, KINDS))
RANKS = ((2, 1), (1, 2))


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("layout", "kind", "others"),
    [(*QUICK, [(4, 0)]), *(slow(*case, [(1, 2), (2, 1), (4, 0)]) for case in ALL)],
)
def test_two_epochs_are_the_same_on_live_processes(
    live: Callable[[str, str], Live], layout: str, kind: str, others: list[tuple[int, int]]
) -> None:
    """others: (processes, workers of each), compared with one process that reads by itself."""
    runs = live(layout, kind)
    straight = runs.run(1, 0)
    two_epochs = 2 * (112 if "mixture" in kind else 83)
    assert [i for i, _ in straight] == list(range(len(straight)))
    assert two_epochs - 3 * BATCH < len(straight) < two_epochs + BATCH  # buckets leave a rest
    for world, workers in others:
        assert runs.run(world, workers) == straight, (world, workers)


@pytest.mark.parametrize(
    ("layout", "kind", "before", "after"),
    [
        (*case, *ranks) if (case, ranks) == (QUICK, (2, 1)) else slow(*case, *ranks)
        for case in ALL
        for ranks in RANKS
    ],
)
def test_a_stopped_run_goes_on_with_the_same_batches_on_other_processes(
    live: Callable[[str, str], Live], layout: str, kind: str, before: int, after: int
) -> None:
    """SIGTERM in the middle of a step and of an epoch."""
    runs = live(layout, kind)
    straight = runs.run(1, 0)
    first = runs.run(before, 1, name="stopped", sigterm_at=9)
    assert len(first) == 5 * BATCH
    assert first + runs.run(after, 0, name="stopped") == straight
