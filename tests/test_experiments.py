"""Does every experiment compose, pass the check, and train two steps when it is made small?"""

from __future__ import annotations

import string
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from transformers import BertTokenizer

from ldm import app, cli
from ldm.io import checkpoint as files
from ldm.parts import check_train

Config = dict[str, Any]
NAMES = sorted(path.stem for path in (cli.CONF / "experiment").glob("*.yaml"))
QUICK = ("sd15", "v_tiny")  # the others are as quick, but many

# what makes each kind of part small; the kinds are told apart by what the experiment chose
WIDTHS = {2: "[8,16]", 3: "[8,16,16]", 4: "[8,16,16,16]"}
TEXT = {
    "ldm.models.text.clip.clip_text": ("models/text=tiny", "models.text.source=tiny"),
    "ldm.models.text.none.NoText": (),
    "ldm.models.text.bert.bert_text": (
        "models.text.source=scratch",
        "models.text.config.width=128",
        "models.text.config.num_layers=1",
        "models.text.config.num_heads=2",
        "models.text.config.ff_width=64",
        "models.text.config.max_tokens=16",
    ),
    "ldm.models.text.tiny_clip.clip_pair": (
        "models.text.config.width=16",
        "models.text.config.text_layers=1",
        "models.text.config.vision_layers=1",
        "models.text.config.heads=2",
        "models.text.config.projection=16",
    ),
}
TWO_STEPS = (
    "debug=two_steps",
    "training.batch_size=4",
    "training.max_samples=8",
    "training.log_every=4",
    "training.val_every=8",
    "training.save_every=8",
    "training.optim.warmup=4",
    "training.optim.lr=0.001",
    "training.ema.half_life=4",
    "training.trainer.devices=1",
    "training.prior.count=4",
    "training.prior.steps=2",
)


def compose(*arguments: str) -> Config:
    """What `python scripts/train.py` would make of these arguments."""
    return deepcopy(_composed(arguments))


@cache
def _composed(arguments: tuple[str, ...]) -> Config:
    if not OmegaConf.has_resolver("verbatim"):
        OmegaConf.register_new_resolver("verbatim", lambda text: bytes.fromhex(text[1:]).decode())
    with hydra.initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=cli.encode(list(arguments)))
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return plain


def missing(node: Any, path: str = "") -> list[str]:
    """The keys that have to be given."""
    if isinstance(node, dict):
        return [key for k, v in node.items() for key in missing(v, f"{path}.{k}".lstrip("."))]
    return [path] if node == "???" else []


# what experiments that tune a given model are tried on
BASES = {"tiny": "quickstart", "sd15": "sd15_finetune"}


def made_small(name: str, tmp_path: Path, base: Path | None = None) -> list[str]:
    """Arguments that leave every choice of the experiment but sizes and weights."""
    cfg = compose(f"experiment={name}")
    unet, text = cfg["models"]["unet"], cfg["models"]["text"]
    levels = len(unet["block_out_channels"])
    small = [f"experiment={name}", *TWO_STEPS, *TEXT[text["_target_"]]]
    small += [
        f"models.unet.block_out_channels={WIDTHS[levels]}",
        "models.unet.num_attention_heads=2",
        "models.unet.norm_num_groups=4",
    ]
    if unet["cross_attention_dim"] is not None:
        small += ["models.unet.cross_attention_dim=128"]
    if text["_target_"].endswith("bert_text"):
        small += [f"models.text.tokenizer={bert_vocabulary(tmp_path)}"]
    if "block_out_channels" in cfg["models"]["vae"] and cfg["task"] != "vae":
        small += ["models/vae=tiny", "models.vae_weights=tiny"]
    if cfg["task"] == "vae":
        vae_levels = len(cfg["models"]["vae"]["block_out_channels"])
        small += [f"models.vae.block_out_channels={WIDTHS[vae_levels]}"]
        small += ["models.vae.norm_num_groups=4", "models.vae_train=all"]
        small += ["training.vae_loss.perceptual=0", "training.vae_loss.gan.width=8"]
    if cfg["adapters"]["_target_"].endswith("LoRASettings"):
        small += ["adapters.rank=4"]
    if "token" in cfg["adapters"]:  # the captions have to have it
        small += [f"data.templates=['{cfg['adapters']['token']}: {{}}']"]
    return [*small, "data.size=32", "widen=[]", f"init_from={base or 'null'}"]


def is_tuned(name: str) -> bool:
    """Whether an experiment leaves the UNet as it is, so that there must be one."""
    cfg = compose(f"experiment={name}")
    adapters = not cfg["adapters"]["_target_"].endswith("NoAdapters")
    return adapters or cfg["training"]["prior"]["prompts"] is not None


def bert_vocabulary(folder: Path) -> Path:
    """A tokenizer that spells: enough to show that captions reach the encoder."""
    out = folder / "vocabulary"
    out.mkdir()
    letters = list(string.ascii_lowercase)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    (out / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(out / "vocab.txt")).save_pretrained(out)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_composes_and_passes_the_check(name: str) -> None:
    """On a machine with GPUs nothing is missing but what the user has to give."""
    cfg = compose(f"experiment={name}")
    assert cfg["name"] == name
    assert missing(cfg) in ([], ["data.train.shards"])
    given = [f"{key}=somewhere" for key in missing(cfg)]
    assert (
        check_train(compose(f"experiment={name}", "training.trainer.accelerator=cpu", *given)) == []
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_fits_the_devices_of_the_recipe(name: str) -> None:
    training = compose(f"experiment={name}")["training"]
    world = training["trainer"]["devices"] * training["trainer"]["num_nodes"]
    assert training["batch_size"] % ((training["micro_batch"] or 1) * world) == 0
    assert training["optim"]["warmup"] < training["max_samples"]
    for key in ("max_samples", "log_every", "val_every", "sample_every", "save_every"):
        amount = training[key]
        assert amount is None or amount >= training["batch_size"], key


@pytest.mark.parametrize("name", NAMES)
def test_no_diff_asks_for_a_value(name: str) -> None:
    """Merging `???` over a value keeps the value, in silence: it would ask for nothing."""
    assert "???" not in (cli.CONF / "experiment" / f"{name}.yaml").read_text()


def test_what_the_user_has_to_give_is_an_error_that_names_it() -> None:
    (problem,) = check_train(compose("experiment=sd15", "training.trainer.accelerator=cpu"))
    assert "train.shards" in problem


def test_full_size_recipes_are_the_published_ones() -> None:
    """Steps, batch and rate of the model cards; an EMA decay of 0.9999 a step as a half-life."""
    steps = {"sd15_256": 237_000, "sd15": 1_304_000, "sd21_base": 850_000, "sd21_v": 140_000}
    for name, count in steps.items():
        cfg = compose(f"experiment={name}")
        training, batch = cfg["training"], cfg["training"]["batch_size"]
        assert batch == 2048
        assert training["max_samples"] == count * batch
        assert (training["optim"]["lr"], training["optim"]["warmup"]) == (1e-4, 10_000 * batch)
        assert training["caption_dropout"] == 0.1
        assert 2 ** (-batch / training["ema"]["half_life"]) == pytest.approx(0.9999, abs=1e-7)
        assert cfg["diffusion"]["schedules"]["beta_end"] == 0.012
    assert compose("experiment=sd21_v")["diffusion"]["prediction"]["_target_"].endswith(".V")


def trains_two_steps(name: str, tiny_cfg: Callable[..., Config], tmp_path: Path) -> dict[str, Any]:
    run_dir = tmp_path / "run"
    base = None
    if is_tuned(name):
        base = tmp_path / "base"
        assert app.train(tiny_cfg(base, *made_small(BASES[name.split("_")[0]], tmp_path))) == 0
    cfg = tiny_cfg(run_dir, *made_small(name, tmp_path, base))
    cfg["training"]["sample_every"] = 8 if cfg["training"]["sample_every"] else None
    assert app.train(cfg) == 0
    newest = files.latest_valid(run_dir / "checkpoints")
    assert newest is not None
    assert list((run_dir / "samples").glob("*.png")) or not cfg["training"]["sample_every"]
    return files.read(newest)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_trains_two_steps(name: str, tiny_cfg: Callable[..., Config], tmp_path: Path) -> None:
    document = trains_two_steps(name, tiny_cfg, tmp_path)
    assert document["samples_seen"] == 8
    assert document["card"]["name"] == name
