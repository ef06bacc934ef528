"""Which adapters does a run train, and how are they built again from a card?

A run's adapters are named by what they are attached to: `unet` or `text`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.adapters.attach import Adapter
from ldm.adapters.hypernetwork import Hypernetwork, HypernetworkConfig, context_widths
from ldm.adapters.lora import DEFAULT_TARGETS_KOHYA, LoRA, LoRAConfig
from ldm.adapters.token import NewToken, embedding_of

MARKUP = "()[]:\\"  # of weighted prompts
KINDS: dict[str, type[LoRA] | type[Hypernetwork] | type[NewToken]] = {
    "lora": LoRA,
    "hypernetwork": Hypernetwork,
    "token": NewToken,
}


class Text(Protocol):
    """What adapters need of a text encoder (ldm.models.text.base.TextEncoder)."""

    @property
    def module(self) -> nn.Module: ...

    def ids_of(self, text: str) -> list[int]: ...


class AdapterSettings(Protocol):
    """What a node of conf/adapters builds."""

    def build(self, unet: nn.Module, text: Text | None) -> dict[str, Adapter]:
        """New adapters, not attached. Raises ValueError where they do not fit."""


@dataclass(frozen=True, kw_only=True)
class NoAdapters:
    """The networks' own weights are trained."""

    def build(self, unet: nn.Module, text: Text | None) -> dict[str, Adapter]:
        return {}


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """LoRA in the UNet and, where text_targets name some of its layers, in the text encoder.

    The first six are LoRAConfig's, of the UNet; text_rank None: rank. alpha/rank is the same in
    both.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = DEFAULT_TARGETS_KOHYA
    kinds: tuple[str, ...] = ("Linear", "Conv2d")
    rank_pattern: dict[str, int] = field(default_factory=dict)
    text_targets: tuple[str, ...] = ()
    text_rank: int | None = None

    def __post_init__(self) -> None:
        self._unet()
        if self.text_targets:
            self._text()
        if not self.targets and self.rank_pattern:
            raise ValueError("rank_pattern is given, but targets names no layers of the UNet")
        if not self.text_targets and self.text_rank is not None:
            raise ValueError(f"text_rank={self.text_rank}, but text_targets names no layers")

    def build(self, unet: nn.Module, text: Text | None) -> dict[str, Adapter]:
        built: dict[str, Adapter] = {}
        if self.targets:
            built["unet"] = LoRA(unet, self._unet())
        if self.text_targets:
            if text is None:
                raise ValueError("text_targets are given, but this text encoder has no network")
            built["text"] = LoRA(text.module, self._text())
        if not built:
            raise ValueError("targets and text_targets are both empty: nothing would be trained")
        return built

    def _unet(self) -> LoRAConfig:
        return LoRAConfig(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=self.targets,
            kinds=self.kinds,
            rank_pattern=self.rank_pattern,
        )

    def _text(self) -> LoRAConfig:
        rank = self.rank if self.text_rank is None else self.text_rank
        return LoRAConfig(
            rank=rank,
            alpha=self.alpha / self.rank * rank,
            dropout=self.dropout,
            targets=self.text_targets,
            kinds=("Linear",),
        )


@dataclass(frozen=True, kw_only=True)
class HypernetworkSettings:
    """A hypernetwork on the UNet's attentions; the fields are HypernetworkConfig's.

    cross_only: on those to the text alone; else on self-attention too.
    """

    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation: str = "mish"
    layer_norm: bool = False
    activate_output: bool = False
    dropout: tuple[float, ...] = ()
    cross_only: bool = True

    def __post_init__(self) -> None:
        self._config()

    def build(self, unet: nn.Module, text: Text | None) -> dict[str, Adapter]:
        widths = context_widths(unet, cross_only=self.cross_only)
        return {"unet": Hypernetwork(widths, self._config())}

    def _config(self) -> HypernetworkConfig:
        return HypernetworkConfig(
            layer_structure=self.layer_structure,
            activation=self.activation,
            layer_norm=self.layer_norm,
            activate_output=self.activate_output,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class TextualInversionSettings:
    """A new word of the text encoder. vectors: how many stand for it; initializer: known words
    whose rows they begin as, one after the other; "": random ones of the rows' mean and spread."""

    token: str
    vectors: int = 1
    initializer: str = ""

    def __post_init__(self) -> None:
        problems = []
        if not self.token or any(letter.isspace() or letter in MARKUP for letter in self.token):
            problems.append(
                f"token={self.token!r}; give a word without blanks and {MARKUP}, as <thing>"
            )
        if self.vectors < 1:
            problems.append(f"vectors={self.vectors}; give 1 or more")
        if problems:
            raise ValueError("TextualInversionSettings: " + "; ".join(problems))

    def build(self, unet: nn.Module, text: Text | None) -> dict[str, Adapter]:
        if text is None:
            raise ValueError("a new word needs a text encoder with a network")
        return {"text": NewToken(self.token, self._first(text))}

    @torch.no_grad()
    def _first(self, text: Text) -> Tensor:
        table = embedding_of(text.module).weight.float()
        if not self.initializer.strip():
            noise = torch.randn(self.vectors, table.shape[1])
            return table.mean(0) + table.std(0) * noise.to(table.device)
        ids = text.ids_of(self.initializer)
        if len(ids) > self.vectors:
            raise ValueError(
                f"initializer={self.initializer!r} is {len(ids)} tokens, vectors={self.vectors}; "
                f"give vectors={len(ids)} or a shorter word"
            )
        return table[[ids[i % len(ids)] for i in range(self.vectors)]].clone()


def from_spec(spec: Mapping[str, Any], base: nn.Module) -> Adapter:
    """The adapter that `Adapter.spec` described, on the meta device. Raises ValueError."""
    kind = KINDS.get(spec.get("kind", ""))
    if kind is None:
        raise ValueError(f"an adapter of kind {spec.get('kind')!r}; known: {', '.join(KINDS)}")
    return kind.from_spec(spec, base)
