"""From which weights does a run begin, and what may differ from where they come?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ldm.models.dtypes import DTYPES
from ldm.parts import build

log = logging.getLogger(__name__)
Config = dict[str, Any]
INIT = "init_from"  # models.vae_weights and models.text.source: take it from there
CHANGES = ("prediction", "schedule")
COMPARED = ("unet", "vae", "text", "objective", "null", "batch_size", "data")


class Beginning:
    """The model that a run begins from, or goes on with; opened once, read part by part.

    checkpoint: the run's own newest one, which then gives what `init_from` gave at first.
    """

    def __init__(self, cfg: Config, checkpoint: Path | None) -> None:
        self.cfg = cfg
        self.checkpoint = checkpoint
        self._network: Any = None

    @property
    def network(self) -> Any:
        """The opened model (ldm.io.load.Network). Raises ValueError without any."""
        from ldm.io.load import open_network

        if self._network is None:
            place = self.checkpoint or self.cfg[INIT]
            if not place:
                raise ValueError(
                    "models.vae_weights or models.text.source is init_from, but init_from=null; "
                    "give init_from=…, or a source of its own"
                )
            self._network = open_network(place, weights=self.cfg["weights"])
        return self._network

    def codec(self, config: Any) -> Any:
        """The frozen VAE, as `models.vae_weights` says."""
        from ldm.io.frozen import frozen_codec, load_vae_weights

        dtype = DTYPES[self.cfg["models"]["vae_dtype"]]
        source = self.cfg["models"]["vae_weights"]
        if source != INIT:
            return frozen_codec(load_vae_weights(config, source), dtype)
        codec = self._whole("models.vae_weights").codec(dtype)
        _same_config("models.vae", config, codec.vae.config, str(self.network.path))
        return codec

    def text(self) -> Any:
        """The text encoder, as `models.text` says."""
        node = self.cfg["models"]["text"]
        if node.get("source") != INIT:
            return build(node)
        from ldm.models.text.assemble import with_options

        source = self._whole("models.text.source")
        # of the run itself as it began: what it has trained comes with the checkpoint
        before = source.frozen_text if self.checkpoint is not None else None
        given = (before or source.text)()
        options = ("layers", "clip_skip", "pad_token", "null", "dtype")
        return with_options(given, **{k: node[k] for k in options if k in node})

    def initialise(self, unet: Any, card: Config) -> Config | None:
        """Copies the network's weights. Returns the lineage for the card, None without init_from.

        A run that goes on keeps its lineage; its weights come with the checkpoint.
        """
        from ldm.io.source import copy_into

        if self.checkpoint is not None:
            card_before = self.network.card
            if card_before["frozen"].get("unet"):  # not in the checkpoint: it is not trained
                copy_into(unet, self.network.tensors, f"{self.network.path}: unet")
            kept: Config | None = card_before.get("parent")
            return kept
        if not self.cfg[INIT]:
            return None
        network = self.network
        self._check_nothing_is_lost(network)
        self._check_objective(card["objective"])
        copy_into(unet, network.tensors, f"{self.cfg[INIT]}: unet", widen=self.cfg["widen"])
        return network.lineage() | {"changed": _changed(network.card, card)}

    def _check_nothing_is_lost(self, network: Any) -> None:
        """Raises ValueError where the UNet alone would be less than what `init_from` trained."""
        adapters = network.card.get("adapters") or {}
        where = self.cfg[INIT]
        if any(spec["kind"] == "lora" for spec in adapters.values()):
            raise ValueError(
                f"init_from={where} holds a model with a LoRA; merge it first: "
                f"scripts/convert.py input={where} format=native output=…"
            )
        if adapters:
            kind = next(iter(adapters.values()))["kind"]
            began = (network.card.get("parent") or {}).get("source")
            raise ValueError(
                f"init_from={where} holds a model with a {kind}, which cannot be merged; begin "
                f"from what it was trained on, init_from={began}, and attach it when sampling"
            )
        trained = network.source is not None and any(
            name.startswith("text.") for name in network.source.beside
        )
        if trained and self.cfg["models"]["text"].get("source") != INIT:
            raise ValueError(
                f"init_from={where} has trained its text encoder, and models.text.source="
                f"{self.cfg['models']['text'].get('source')} would leave that out; give "
                "models.text.source=init_from"
            )

    def _whole(self, key: str) -> Any:
        if self.network.source is None:
            raise ValueError(
                f"{key}=init_from, but {self.network.path} holds a UNet only; give {key} a source "
                "of its own"
            )
        return self.network.source

    def _check_objective(self, objective: Mapping[str, Any]) -> None:
        """Raises ValueError where the file says something else, unless `change` names it."""
        problems = []
        for name in CHANGES:
            before, now = self.network.stated.get(name), objective[name]
            if before is None or name in self.cfg["change"]:
                continue
            if before != now:
                key = "schedules" if name == "schedule" else name
                problems.append(
                    f"{name}: {self.network.path} says {_short(before)}, diffusion/{key} says "
                    f"{_short(now)}; choose the same, or change=[{name}] to train it over"
                )
        if problems:
            raise ValueError("\n".join(problems))


def beginning_problems(cfg: Config) -> list[str]:
    """What is wrong with `widen`, `change` and `allow` before anything is opened."""
    from ldm.training.resume import CLASSES

    problems = []
    for key in ("widen", "change"):
        value = cfg.get(key)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            problems.append(f"{key}={value!r}; give a list of names, as [conv_in]")
        elif value and not cfg.get(INIT):
            problems.append(f"{key}={value} belongs to init_from, which is null")
        elif key == "change" and set(value) - set(CHANGES):
            problems.append(f"change={value}; allowed: {', '.join(CHANGES)}")
    allow = cfg.get("allow")
    if not isinstance(allow, list) or not set(map(str, allow)) <= set(CLASSES):
        problems.append(f"allow={allow!r}; give a list of {', '.join(CLASSES)}")
    return problems


def _same_config(key: str, ours: Any, theirs: Any, where: str) -> None:
    """Raises ValueError listing the fields in which two configs describe different networks."""
    if type(ours) is not type(theirs):
        raise ValueError(
            f"{key} is a {type(ours).__name__}, {where} holds a {type(theirs).__name__}"
        )
    names = [f.name for f in fields(ours) if f.name != "checkpointing"]
    wrong = [
        f"{key}.{name}={getattr(ours, name)}, {where} has {getattr(theirs, name)}"
        for name in names
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if wrong:
        raise ValueError("\n".join(wrong))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Config:
    """What differs from the parent's card, by key: [before, now]."""
    from ldm.io.configs import differences

    return {
        name: list(pair)
        for key in COMPARED
        if key in before
        for name, pair in differences(before[key], now.get(key), key)
    }


def _short(spec: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{k} {v}" for k, v in spec.items() if k != "name")
    return f"{spec['name']}" + (f" ({rest})" if rest else "")
