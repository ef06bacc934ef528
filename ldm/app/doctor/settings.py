"""Which keys has the doctor beside those of train.py?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.check import field_problems, type_problem
from ldm.cli import ConfigError
from ldm.parts import raise_all

Config = dict[str, Any]
SCANS = ("full", "headers")


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """The node `doctor`; conf/doctor.yaml says what each key means."""

    k: int = 16
    scan: str = "full"
    gpu: str | None = None
    processes: int | None = None
    out: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        found = []
        if self.k < 1:
            found.append(f"doctor.k={self.k}; 1 picture or more")
        if self.scan not in SCANS:
            found.append(f"doctor.scan={self.scan!r}; allowed: {', '.join(SCANS)}")
        if self.processes is not None and self.processes < 1:
            found.append(f"doctor.processes={self.processes}; 1 or more")
        if self.gpu is not None:
            found += _gpu_problems(self.gpu)
        return found

    def folder(self, run_dir: str) -> Path:
        """Where doctor.json and doctor.html go."""
        return Path(run_dir, "doctor") if self.out is None else Path(self.out)


def split(cfg: Config) -> tuple[Config, DoctorSettings, str | None]:
    """(the configuration of train.py, the doctor's own, replay). Raises ConfigError."""
    own = cfg.get("doctor")
    if not isinstance(own, dict):
        raise ConfigError(f"doctor={own!r} is not a group of keys; write doctor.gpu=NAME instead")
    problems = field_problems(own, DoctorSettings, "doctor")
    problems += type_problem(cfg.get("replay"), str | None, "replay")
    raise_all(problems)
    settings = DoctorSettings(**own)
    raise_all(settings.problems())
    rest = {key: value for key, value in cfg.items() if key not in ("doctor", "replay")}
    return rest, settings, cfg.get("replay")


def _gpu_problems(name: str) -> list[str]:
    from ldm.training.estimate_gpus import find_gpu

    try:
        find_gpu(name)
    except ValueError as error:
        return [f"doctor.gpu: {error}"]
    return []
