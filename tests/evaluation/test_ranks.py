"""Do two processes come to the numbers of one?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.mmd import cmmd, kid
from ldm.evaluation.ranks import gathered, gathered_moments
from ldm.evaluation.statistics import Features, Moments

RANK = """
import sys, torch
import torch.distributed as dist
from ldm.evaluation.ranks import gathered, gathered_moments
from ldm.evaluation.statistics import Features, Moments
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
both = torch.load(f"{folder}/features.pt", weights_only=True)
own = both[rank::world]
index = torch.arange(len(both))[rank::world]
features = gathered(Features.of(index, own), device="cpu")
moments = gathered_moments(Moments.of(own), device="cpu")
torch.save((features.index, features.values, moments.mean, moments.scatter),
           f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
"""


def test_one_process_gathers_what_it_has() -> None:
    features = Features.of(torch.arange(3), torch.randn(3, 2))
    moments = Moments.of(features.values)
    assert gathered(features, device="cpu") is features
    assert gathered_moments(moments, device="cpu") is moments


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(tmp_path: Path) -> None:
    values = torch.randn(41, 6, generator=torch.Generator().manual_seed(0))  # 21 and 20 pictures
    torch.save(values, tmp_path / "features.pt")
    commands = [[sys.executable, "-c", RANK, str(rank), "2", str(tmp_path)] for rank in (0, 1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    repository = Path(__file__).parents[2]
    ranks = [subprocess.Popen(line, env=environment, cwd=repository) for line in commands]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    whole = Features.of(torch.arange(41), values)
    other = Features.of(torch.arange(41), values.flip(0) + 0.5)
    for rank in (0, 1):
        index, found, mean, scatter = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        together = Features.of(index, found)
        assert torch.equal(together.values, whole.values)  # bit for bit, so are all numbers of them
        assert kid(other, together, seed=1, subset_size=10) == kid(
            other, whole, seed=1, subset_size=10
        )
        assert cmmd(other, together) == cmmd(other, whole)
        one, two = Moments.of(whole.values), Moments(41, mean, scatter)
        reference = Moments.of(other.values)
        distance = frechet_distance(reference, one).value
        assert frechet_distance(reference, two).value == pytest.approx(distance, abs=1e-12)
