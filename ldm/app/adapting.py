"""What is trained of a diffusion model: its own weights, or adapters on them?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ldm.parts import build

Config = dict[str, Any]
NONE = "ldm.adapters.settings.NoAdapters"


@dataclass(frozen=True)
class Trained:
    """adapters: by `unet` and `text`, attached; own: whose own weights are trained."""

    adapters: dict[str, Any]
    own: tuple[str, ...]

    @property
    def freezes_unet(self) -> bool:
        return "unet" not in self.own

    def card(self, unet: Any) -> Config:
        """What a card says about it."""
        found: Config = {"trained": list(self.own)}
        if self.adapters:
            found["adapters"] = {part: adapter.spec() for part, adapter in self.adapters.items()}
        if self.freezes_unet:
            from ldm.io.checkpoint import tensors_hash

            found["unet_hash"] = tensors_hash(dict(unet.state_dict()))
        return found


def make_trained(cfg: Config, unet: Any, text: Any) -> Trained:
    """Builds the adapters and attaches them. Raises ValueError where they do not fit."""
    from ldm.adapters.attach import attach
    from ldm.adapters.token import NewToken
    from ldm.io.adapted import introduce

    network = text.module if any(True for _ in text.module.parameters()) else None
    adapters = build(cfg["adapters"]).build(unet, None if network is None else text)
    own = cfg["training"]["train"]
    if own is None:
        own = () if adapters else ("unet",)
    _check_text(cfg, adapters, own, text, network)
    for part, adapter in adapters.items():
        introduce(adapter, text)
        attach({"unet": unet, "text": network}[part], adapter)
    if "text" in own:
        text.unfreeze()
        leave_out_unused(text, text.module)
    elif "text" in adapters:
        text.allow_gradients()
        if not isinstance(adapters["text"], NewToken):  # "" does not have the word
            leave_out_unused(text, adapters["text"])
    return Trained(adapters, tuple(own))


def check_words(data: Any, trained: Trained, count: int = 256) -> None:
    """Raises ValueError where a new word is in none of the first captions: it would not be trained.

    data: ldm.data.source.Data; a stream cannot be looked into.
    """
    import torch

    from ldm.adapters.token import NewToken

    words = [a.token for a in trained.adapters.values() if isinstance(a, NewToken)]
    if not words or not hasattr(data.train, "batch"):
        return
    step = 32
    for start in range(0, min(count, data.train_size), step):
        batch = data.train.batch(torch.arange(start, min(start + step, data.train_size)))
        words = [word for word in words if not any(word in c for c in batch.captions)]
    if words:
        raise ValueError(
            f"none of the first captions has the new word {words[0]}: it would not be trained; "
            f'give data.templates=["a {words[0]}, {{}}"], or shards whose captions have it '
            "(make_shards.py data.default_caption=…)"
        )


def leave_out_unused(text: Any, trained: Any) -> None:
    """No gradients for what of `trained` does not reach the context: layers behind clip_skip,
    poolers. DDP with accumulation would wait for them.
    """
    import torch

    context = text.encode([""]).context
    wanted = [p for p in trained.parameters() if p.requires_grad]
    if not wanted or context is None:
        return
    with torch.enable_grad():
        found = torch.autograd.grad(context.sum(), wanted, allow_unused=True)
    for parameter, gradient in zip(wanted, found, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def trained_problems(cfg: Config) -> list[str]:
    """What is wrong with `adapters` and `training.train` before anything is built."""
    training, node = cfg.get("training"), cfg.get("adapters")
    if not isinstance(training, dict) or not isinstance(node, dict):
        return []  # said elsewhere
    adapters, own = node.get("_target_") != NONE, training.get("train")
    if cfg.get("task") != "diffusion":
        wrong = [f"task={cfg.get('task')} has no adapters; use adapters=none"] if adapters else []
        return wrong + (["training.train belongs to task=diffusion"] if own is not None else [])
    problems = []
    known = isinstance(own, list) and set(map(str, own)) <= {"unet", "text"}
    if own is not None and not (known and len(set(own)) == len(own)):
        return [f"training.train={own!r}; give a list of unet and text, or null"]
    if own == [] and not adapters:
        problems.append("training.train=[] and adapters=none: nothing would be trained")
    if adapters and own:
        problems.append(
            f"training.train={own} trains the networks' own weights, adapters leave them as they "
            "are; give adapters=none, or training.train=null"
        )
    frozen = adapters or own == ["text"]
    if frozen and cfg.get("widen"):
        problems.append(
            f"widen={cfg['widen']} adds input channels that begin at zero, and the UNet is not "
            "trained: they would stay zero"
        )
    if frozen and not (cfg.get("init_from") or cfg.get("resume")):
        problems.append(
            "adapters and training.train=[text] leave the UNet as it is, so it must come from "
            "somewhere; give init_from=…"
        )
    return problems


def _check_text(cfg: Config, adapters: Config, own: Any, text: Any, network: Any) -> None:
    """Raises ValueError where the text encoder cannot be trained as it is configured."""
    if "text" not in own and "text" not in adapters:
        return
    if network is None:
        raise ValueError("training.train=[text], but this text encoder has no weights")
    problems = []
    cache = cfg["training"]["cache_captions"]
    if cache:
        problems.append(
            f"training.cache_captions={cache} keeps contexts, which change where the text encoder "
            "is trained or adapted; use 0"
        )
    if "text" in own and text.spec()["dtype"] != "fp32":
        problems.append(
            f"models.text.dtype={text.spec()['dtype']} is too coarse to train in; use fp32 (and "
            "training.trainer.precision=bf16-mixed to compute in bf16)"
        )
    if problems:
        raise ValueError("\n".join(problems))
