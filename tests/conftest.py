"""What do all tests share? Markers that skip loudly, tiny shards and tiny runs."""

from __future__ import annotations

import csv
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from ldm import app, cli
from ldm.data.make.shapes import ShapesSource
from ldm.data.make.writer import ShardWriter
from ldm.io import checkpoint as files

Config = dict[str, Any]
REPOSITORY = Path(__file__).parents[1]

# -- markers that need something which may be missing ---------------------------------------------

REFERENCES = ("diffusers", "peft", "scipy")
_SKIPPED: dict[str, list[str]] = {}


def _missing(marker: str) -> str | None:
    """Why the tests of a marker cannot run here; None when they can."""
    if marker == "reference":
        missing = [name for name in REFERENCES if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed: pip install -e '.[reference]'"
    if marker == "real_data":
        folder = os.environ.get("LDM_REAL_DATA")
        if not folder:
            return "LDM_REAL_DATA is not set: give a folder that holds emoji64/*.tar"
        if not list(Path(folder, "emoji64").glob("*.tar")):
            return f"LDM_REAL_DATA={folder} holds no emoji64/*.tar"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in ("reference", "real_data"):
        if item.get_closest_marker(marker) and (reason := _missing(marker)):
            _SKIPPED.setdefault(f"{marker}: {reason}", []).append(item.nodeid)
            pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason, tests in _SKIPPED.items():
        terminalreporter.section("SKIPPED, something is missing", red=True, bold=True)
        terminalreporter.line(f"{len(tests)} tests marked {reason}")


# -- a run leaves no trace in this process --------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a run sets for its process lives on: threads, wandb's folders, the launcher."""
    launchers = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_NTASKS", "SLURM_PROCID")
    for name in (*launchers, "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    before, threads = dict(os.environ), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in set(os.environ) - set(before):
        if name.startswith(("WANDB", "MASTER_", "PL_", "POPEN_")):
            del os.environ[name]


# -- tiny data ------------------------------------------------------------------------------------


def write_shapes(out: Path, *, count: int, start: int = 0, per_shard: int = 48) -> Path:
    """Shards of drawn shapes from the project's own writer."""
    writer = ShardWriter(out=out, samples_per_shard=per_shard, progress=False)
    writer.write(ShapesSource(count=count, start=start))
    return out


@pytest.fixture(scope="session")
def train_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 shapes in two shards."""
    return write_shapes(tmp_path_factory.mktemp("data") / "train", count=96)


@pytest.fixture(scope="session")
def val_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 other shapes."""
    return write_shapes(tmp_path_factory.mktemp("data") / "val", count=11, start=96)


# -- tiny runs ------------------------------------------------------------------------------------

TINY = (
    "models.unet.block_out_channels=[16,32]",
    "models.unet.num_attention_heads=2",
    "models.unet.norm_num_groups=8",
    "sampling.steps=2",
    "data.num_workers=0",
    "training.batch_size=8",
    "training.max_samples=32",
    "training.log_every=8",
    "training.val_every=null",
    "training.sample_every=null",
    "training.save_every=16",
    "training.optim.lr=0.002",
    "training.callbacks.validation.batch_size=4",
    "training.ema.half_life=20",
    "training.trainer.accelerator=cpu",
    "training.trainer.threads=1",
)


@pytest.fixture(scope="session")
def composed() -> Callable[..., Config]:
    """composed("key=value", …, config="train"): the configuration of a command line."""
    return compose


def compose(*arguments: str, config: str = "train") -> Config:
    """What the command line `arguments` makes of a configuration, as plain containers."""
    return deepcopy(_composed(arguments, config))


@cache
def _composed(arguments: tuple[str, ...], config: str) -> Config:
    if not OmegaConf.has_resolver("verbatim"):
        OmegaConf.register_new_resolver("verbatim", lambda text: bytes.fromhex(text[1:]).decode())
    with hydra.initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = hydra.compose(config, overrides=cli.encode(list(arguments)))
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return plain


def tiny_arguments(train_shards: Path, val_shards: Path, *changes: str) -> list[str]:
    """The command line of a tiny run; `changes` replace what it says of the same key."""
    given = {change.partition("=")[0].lstrip("+") for change in changes}
    shards = (f"data.train.shards={train_shards}", f"data.val.shards={val_shards}")
    return [a for a in (*TINY, *shards) if a.partition("=")[0] not in given] + list(changes)


@pytest.fixture(scope="session")
def tiny_line(train_shards: Path, val_shards: Path) -> Callable[..., list[str]]:
    """tiny_line("key=value", …): the command line of a tiny run."""
    return partial(tiny_arguments, train_shards, val_shards)


@pytest.fixture(scope="session")
def tiny_cfg(tiny_line: Callable[..., list[str]]) -> Iterator[Callable[..., Config]]:
    """tiny_cfg(run_dir, "key=value", …): conf/train.yaml at a size that trains in a second."""

    def make(run_dir: Path, *changes: str) -> Config:
        return {**compose(*tiny_line(*changes)), "run_dir": str(run_dir)}

    with pytest.MonkeyPatch.context() as patch:  # as long as two steps; see test_curves.py
        patch.setattr("ldm.training.callbacks.curves.plot", lambda source, target: target.touch())
        yield make


@pytest.fixture
def tiny_run(tiny_cfg: Callable[..., Config]) -> Callable[..., Path]:
    """tiny_run(run_dir, "key=value", …) trains in this process and gives the run folder."""

    def run(run_dir: Path, *changes: str, expect: int = 0) -> Path:
        assert app.train(tiny_cfg(run_dir, *changes)) == expect
        return run_dir

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_cfg: Callable[..., Config]) -> Path:
    """A run folder with everything in it: 4 steps, 2 checkpoints, 2 grids. Only to be read."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    changes = ("training.val_every=16", "training.sample_every=16")
    assert app.train(tiny_cfg(run_dir, *changes)) == 0
    return run_dir


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """The finished run once more, to be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "copy", symlinks=True))


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def script(tiny_line: Callable[..., list[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """script("train", "key=value", …) runs scripts/train.py in a process of its own."""

    def run(
        name: str, *arguments: str, cwd: Path = REPOSITORY, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        if name == "train":
            arguments = tuple(tiny_line(*arguments))
        command = [sys.executable, str(REPOSITORY / "scripts" / f"{name}.py"), *arguments]
        return subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=570,
            check=False,
        )

    return run


# -- looking into a run folder --------------------------------------------------------------------


@pytest.fixture(scope="session")
def document() -> Callable[[Path], Config]:
    """document(run_dir): the newest checkpoint."""

    def newest(run_dir: Path) -> Config:
        path = files.latest_valid(run_dir / "checkpoints")
        assert path is not None
        return files.read(path)

    return newest


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict[str, float]]]:
    """metrics(run_dir): the rows of metrics.csv, without empty cells."""

    def rows(run_dir: Path) -> list[dict[str, float]]:
        with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]

    return rows


@pytest.fixture(scope="session")
def differences() -> Callable[[Any, Any], list[str]]:
    """differences(a, b): where two documents differ, bit for bit."""
    return _differences


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [f"{path}: tensors differ"]
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__} is not {type(other).__name__}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: keys {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [d for key in one for d in _differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: {len(one)} is not {len(other)} long"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{path}[{i}]")]
    return [] if one == other else [f"{path}: {one!r} is not {other!r}"]


# -- a disk with little room ---------------------------------------------------------------------


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """The kernel lets no file grow beyond so many bytes; what fits is written, as on a disk."""

    @contextmanager
    def limited(limit_bytes: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited
