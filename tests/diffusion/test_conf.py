"""Does conf/diffusion say the same as the classes, with nothing left out?"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ldm.diffusion.prediction import PREDICTIONS
from ldm.diffusion.schedules import SCHEDULES, ScaledLinear
from ldm.diffusion.times import TIMES
from ldm.diffusion.weighting import WEIGHTINGS

CONF = Path(__file__).parents[2] / "conf" / "diffusion"
TABLES = {
    "schedules": SCHEDULES,
    "prediction": PREDICTIONS,
    "weighting": WEIGHTINGS,
    "times": TIMES,
}
FILES = sorted(CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("group", TABLES)
def test_every_class_has_a_file_and_the_reverse(group: str) -> None:
    names = {file.stem for file in FILES if file.parent.name == group}
    assert names - {"ztsnr"} == set(TABLES[group])  # ztsnr: scaled_linear with one field changed


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_file_lists_every_field_with_its_default(file: Path) -> None:
    node = OmegaConf.load(file)
    value = instantiate(node)
    assert set(node) - {"_target_"} == {field.name for field in fields(value)}
    default = ScaledLinear(zero_terminal_snr=True) if file.stem == "ztsnr" else type(value)()
    assert value == default
    assert all("  # " in line for line in file.read_text().splitlines())
