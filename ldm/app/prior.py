"""Where do the class pictures of DreamBooth come from, and how do they join the data of a run?"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldm import rng
from ldm.data.make.sample import LeftOut, Plain, Sample
from ldm.parts import build

log = logging.getLogger(__name__)
Config = dict[str, Any]
NODE = "training.prior"
KIND = "prior"  # what index.json says of class pictures that were drawn here
AT_ONCE = 16  # pictures drawn together
PER_SHARD = 8  # finished pictures that an interruption costs: those of the shard that is open
DEFAULTS = {"filter": {}, "caption_key": None, "templates": [], "overfit_samples": 0}


@dataclass(frozen=True)
class ClassPictures:
    """Pictures of the class, drawn when they are asked for; picture i is a function of i alone.

    load: the pipeline, opened at the first picture only. size: side in px.
    """

    load: Callable[[], Any]
    prompts: Sequence[str]
    count: int
    seed: int
    size: int
    guidance: float | None
    steps: int | None
    drawn_by: str

    def __len__(self) -> int:
        return self.count

    def items(self, start: int = 0) -> Iterator[Sample | LeftOut]:
        pipe = self.load()
        for first in range(start, self.count, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, self.count))
            prompts = [self.prompts[i % len(self.prompts)] for i in numbers]
            images = pipe.txt2img(
                prompts,
                seeds=[rng.fold(self.seed, KIND, i) for i in numbers],
                steps=self.steps,
                guidance=self.guidance,
                size=(self.size, self.size),
            )
            for prompt, image in zip(prompts, images, strict=True):
                yield Sample(prompt, image, prompt)

    def spec(self) -> dict[str, Plain]:
        return {
            "source": KIND,
            "prompts": list(self.prompts),
            "count": self.count,
            "seed": self.seed,
            "size": self.size,
            "guidance": self.guidance,
            "steps": self.steps,
            "drawn_by": self.drawn_by,
        }


def prior_problems(cfg: Config) -> list[str]:
    """What does not go together with class pictures, before anything is opened."""
    node = _node(cfg)
    if node is None:
        return []
    problems = []
    if cfg.get("task") != "diffusion":
        problems.append(f"{NODE}.prompts belongs to task=diffusion")
    if not cfg.get("init_from"):
        problems.append(f"{NODE}: class pictures are drawn by init_from, which is null")
    data = cfg.get("data")
    if not isinstance(data, dict):
        return problems  # said elsewhere
    if data.get("mode") != "ordered" or data.get("format") != "images":
        problems.append(f"{NODE} needs data.mode=ordered and data.format=images")
    if (data.get("buckets") or {}).get("max_aspect") != 1.0:
        problems.append(f"{NODE}: class pictures are square; use data.buckets.max_aspect=1")
    problems += [
        f"data.{key}={data[key]!r} would be for the class pictures too; put it into the shards, "
        f"and leave {key} out"
        for key, default in DEFAULTS.items()
        if data.get(key, default) != default
    ]
    return problems


def draw_class_pictures(cfg: Config) -> None:
    """Draws what is missing in the folder of class pictures; nothing without `training.prior`.

    Finished shards stay. Several processes may call it: one draws, the others wait for it. A folder
    with shards of somebody else is left as it is. Raises ValueError where it holds anything else.
    """
    if _node(cfg) is None:
        return
    from ldm.data.make.writer import ShardWriter

    settings, folder = build(cfg["training"]["prior"]), class_folder(cfg)
    source = ClassPictures(
        lambda: _pipeline(cfg),
        read_prompts(settings.prompts),
        settings.count,
        cfg["seed"],
        cfg["data"]["size"],
        settings.guidance,
        settings.steps,
        f"{cfg['init_from']} ({cfg['weights']})",
    )
    with _alone(folder):
        if not _is_ours(folder, source.spec()):
            log.info("class pictures: %s, which was not drawn here", folder)
            return
        try:
            ShardWriter(out=folder, samples_per_shard=PER_SHARD).write(source)
        except FileNotFoundError as error:
            raise ValueError(
                f"{NODE}.folder={folder} is not whole any more; remove it, and the pictures are "
                f"drawn again ({error})"
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def open_training_data(cfg: Config) -> Any:
    """What a run trains on: `data`, with the class pictures mixed in where there are any."""
    from ldm.data.source import open_data
    from ldm.training.prior import in_short_runs, usable_class_pictures, with_prior

    options = {"seed": cfg["seed"], "batch_size": cfg["training"]["batch_size"]}
    config = build(cfg["data"])
    if _node(cfg) is None:
        return open_data(config, **options)
    settings, folder = build(cfg["training"]["prior"]), class_folder(cfg)
    if not any(folder.glob("*.tar")):
        raise FileNotFoundError(f"{NODE}.folder={folder} holds no class pictures yet; train first")
    data = in_short_runs(open_data(with_prior(config, str(folder), settings.share), **options))
    found = usable_class_pictures(data)
    if found < settings.count:
        raise ValueError(
            f"{NODE}.folder={folder} holds {found} class pictures that can be used, "
            f"{NODE}.count={settings.count}; add some, lower the count, or give a new folder, "
            "where they are drawn"
        )
    spec = {"share": settings.share, "weight": settings.weight}
    return replace(data, order_spec={**data.order_spec, "prior": spec})


def prior_loss(cfg: Config, data: Any) -> Any:
    """How the loss of a batch is made of its rows; None: their mean."""
    if _node(cfg) is None:
        return None
    from ldm.training.prior import PriorLoss

    return PriorLoss(data.train.order, weight=cfg["training"]["prior"]["weight"])


def read_prompts(given: Sequence[str] | str) -> list[str]:
    """A list as it is, or the lines of a text file. Raises ValueError where there are none."""
    if not isinstance(given, str):
        return list(given)
    path = Path(given).expanduser()
    if not path.is_file():
        raise ValueError(
            f'{NODE}.prompts={given} is no file; give a list, as ["a photo of a dog"], or a text '
            "file with one prompt a line"
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise ValueError(f"{NODE}.prompts={given} holds no prompt; write one a line")
    return [line for line in lines if line]


def _node(cfg: Config) -> Config | None:
    """The node, where it asks for class pictures; older configurations have none."""
    node = cfg["training"].get("prior") if isinstance(cfg.get("training"), dict) else None
    return node if isinstance(node, dict) and node.get("prompts") is not None else None


def class_folder(cfg: Config) -> Path:
    """Where the class pictures are, or will be drawn."""
    given = cfg["training"]["prior"]["folder"]
    return Path(cfg["run_dir"]) / "prior" if given is None else Path(given).expanduser()


def _pipeline(cfg: Config) -> Any:
    """The model as it is before training."""
    from ldm import pipeline

    device = "cpu" if cfg["training"]["trainer"]["accelerator"] == "cpu" else "auto"
    return pipeline.load(cfg["init_from"], weights=cfg["weights"], device=device)


def _is_ours(folder: Path, wanted: dict[str, Plain]) -> bool:
    """Whether pictures are drawn into the folder, or have been. Raises ValueError if unclear."""
    from ldm.data.make.writer import INDEX

    index = folder / INDEX
    if not index.is_file():
        if any(folder.glob("*.tar")):
            return False
        if others := sorted(p.name for p in folder.glob("*") if not p.name.endswith(".tmp")):
            raise ValueError(
                f"{NODE}.folder={folder} holds no shards, but {', '.join(others[:3])}, …; make "
                f"shards of pictures (scripts/make_shards.py source=folder data.root={folder} "
                'data.default_caption="…" out=…), or give a new folder, where they are drawn'
            )
        return True
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["source"]
        kind = found["source"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not an index of shards ({error}); remove it") from error
    if kind != KIND:
        return False
    changed = [
        f"{name} was {found.get(name)!r} and is {wanted.get(name)!r} now"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if changed:
        raise ValueError(
            f"{NODE}.folder={folder} holds other class pictures ({'; '.join(changed)}); put it "
            "back, give another folder, or remove this one"
        )
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; a lock beside the folder, which ends with the process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for the process that draws class pictures into %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
