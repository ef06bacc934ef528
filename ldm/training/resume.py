"""What has changed since a run was stopped, and may it?

Unsafe changes make the rest of the run another one than it would have been; each class of them
must be named: allow=[lr, data]. All others are only listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.io.configs import differences

# the classes: parts of the card that they cover
CARD = {
    "architecture": ("task", "unet", "vae", "text", "trained", "adapters", "unet_hash"),
    "objective": ("objective", "null"),
    "batch": ("batch_size",),
    "data": ("data",),
    "seed": ("seed",),
}
# ... and keys of the configuration that no card has
CONFIG = {
    "lr": ("training.max_samples", "training.optim"),
    "objective": (
        "training.caption_dropout",
        "training.ema",
        "training.gradient_clip",
        "training.inpainting",
        "training.vae_loss",
    ),
    "data": ("data",),
}
CLASSES = ("lr", *CARD)
# which bytes are read tells the card; how fast they are read changes nothing
HARMLESS_DATA = (
    "num_workers",
    "start_method",
    "prefetch",
    "cache_dir",
    "cache_gb",
    "keep_mib",
    "shards",
    "max_bad_ratio",
    "max_pixels",
)
MOVABLE = ("source", "train", "val")  # the same bytes may lie elsewhere by now; hashes tell
# of the command line, not of the run; model and objective are compared by their cards
NOT_OF_THE_RUN = (
    "resume",
    "allow",
    "init_from",
    "weights",
    "widen",
    "change",
    "run_dir",
    "models",
    "diffusion",
    "adapters",
)


@dataclass(frozen=True)
class Change:
    """One difference. kind: its class when it is unsafe, None when it is safe."""

    path: str
    before: Any
    now: Any
    kind: str | None

    def __str__(self) -> str:
        safe = "safe" if self.kind is None else f"unsafe: {self.kind}"
        return f"{self.path} was {self.before!r} and is {self.now!r} now ({safe})"


def changes(
    old_card: Mapping[str, Any],
    card: Mapping[str, Any],
    old_config: Mapping[str, Any] | None,
    config: Mapping[str, Any],
) -> list[Change]:
    """Everything that differs; old_config None: only what the cards say can be compared."""
    found = [
        Change(path, before, now, kind)
        for kind, keys in CARD.items()
        for key in keys
        for path, (before, now) in differences(_said(old_card, key), _said(card, key), key)
        if _last(path) not in MOVABLE
    ]
    if old_config is None:
        before, now = old_card.get("total_samples"), card.get("total_samples")
        horizon = [] if before == now else [Change("max_samples", before, now, "lr")]
        return found + horizon
    known = {change.path for change in found}
    for key in sorted(set(old_config) | set(config)):
        if key in NOT_OF_THE_RUN:
            continue
        for path, (before, now) in differences(old_config.get(key), config.get(key), key):
            if path in known or path.removeprefix("training.") in known:
                continue
            found.append(Change(path, before, now, _kind(path, config)))
    return found


def refused(found: Sequence[Change], allow: Sequence[str]) -> list[str]:
    """One problem for each unsafe change that `allow` does not name."""
    return [
        f"{change}; put it back, or say allow=[{change.kind}] and the rest of the run is another "
        "one (init_from=… starts a new run from its weights)"
        for change in found
        if change.kind is not None and change.kind not in allow
    ]


def _kind(path: str, config: Mapping[str, Any]) -> str | None:
    """The class of a key of the configuration; None for those that change nothing."""
    for kind, prefixes in CONFIG.items():
        if any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes):
            constant = config["training"]["optim"].get("shape") == "constant"
            if path == "training.max_samples" and constant:
                return None  # a longer run has the same learning rate so far
            harmless = path.startswith("data.") and _last(path) in HARMLESS_DATA
            return None if harmless else kind
    return None


def _said(card: Mapping[str, Any], key: str) -> Any:
    """Of a card; older ones do not say what every run then trained."""
    return card.get(key, ["unet"] if key == "trained" else None)


def _last(path: str) -> str:
    return path.rpartition(".")[2]
