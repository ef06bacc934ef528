"""Does docs/scaling.md say what benchmarks/scaling.py derives?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_a_job_divides_the_batch() -> None:
    from scaling_model import Job

    for devices in (1, 8, 64, 256, 1024):
        for size in (256, 512):
            job = Job(size, devices)
            assert job.micro_batch * job.accumulate * devices == 2048
    assert Job(256, 8).micro_batch == 64
    assert Job(512, 1024).micro_batch == 2


def test_the_recipe_is_the_one_of_the_experiments() -> None:
    import yaml
    from scaling_model import MICRO, REPOSITORY, SD15_SAMPLES

    for name, size in (("sd15_256", 256), ("sd15", 512)):
        node = yaml.safe_load((REPOSITORY / f"conf/experiment/{name}.yaml").read_text())
        assert node["data"]["size"] == size
        assert node["training"]["max_samples"] == SD15_SAMPLES[size]
        assert node["training"]["micro_batch"] == MICRO[size]
        assert node["training"]["save_every"] == 2_048_000


def test_measured_rates_are_those_of_the_performance_page() -> None:
    """To two digits, as the table says them."""
    from run import NUMBERS
    from scaling_model import DECODED, LATENTS_READ

    for name, key, rate in (
        ("data", "images_per_s", DECODED),
        ("latents", "samples_per_s", LATENTS_READ),
    ):
        row = json.loads((NUMBERS / f"{name}.json").read_text())["rows"][0]
        assert row["contender"].startswith("ours")
        assert rate == pytest.approx(row[key][1], rel=0.03)


def test_sharding_in_closed_form() -> None:
    """20 bytes a parameter whole; 8 and an eighth of 12 with ZeRO-1; an eighth with FSDP."""
    from scaling import sharding

    row = sharding().rows[0]
    expected = [0.86e9 * each / 2**30 for each in (20, 9.5, 2.5)]
    assert [float(cell) for cell in row[1:4]] == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_young() -> None:
    """At the best interval, writing costs as much as repeating."""
    from scaling import interruptions
    from scaling_model import DISK, INTERRUPTION

    for row in interruptions().rows:
        devices, minutes, lost = (float(row[n].replace(",", "")) for n in (0, 2, 4))
        write = 16 * 859_520_964 / DISK
        between = INTERRUPTION / devices * 3600
        assert write / (60 * minutes) == pytest.approx(60 * minutes / 2 / between, rel=0.02)
        assert lost == pytest.approx(100 * 2 * write / (60 * minutes), rel=0.02)


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    """After a change of the networks: python benchmarks/scaling.py --write, and read the text."""
    from scaling import problems

    assert problems() == []


@pytest.mark.slow
def test_the_plot(tmp_path: Path) -> None:
    from scaling_plot import plot

    plot(tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.slow
def test_measuring() -> None:
    from scaling_measure import measure

    lines = measure().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["index made", "index read", "checkpoint"]
