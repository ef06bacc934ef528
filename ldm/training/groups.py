"""Which parameters learn at which share of the rate, and which not at all?

A glob is matched against the whole name in the trained module (`unet.down_blocks.0.*`,
`vae.decoder.conv_out.*`); `*` also crosses dots. The first glob that matches counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ldm.adapters.targets import matching, nearest

Named = Iterable[tuple[str, nn.Parameter]]
ParameterGroup = dict[str, Any]  # as torch.optim takes it
KEYS = ("lr", "weight_decay", "betas")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a glob changes. lr: factor on the rate, 0 freezes; None: as everything else."""

    lr: float = 1.0
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.lr == 0:
            return "frozen"
        decay = "" if self.weight_decay is None else f", weight decay {self.weight_decay:g}"
        betas = "" if self.betas is None else f", betas {self.betas[0]:g} and {self.betas[1]:g}"
        return f"x {self.lr:g}{decay}{betas}"


def rules_of(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Rule]:
    """`training.optim.groups`, which `problems_of` found to be right."""
    return {
        glob: Rule(**{k: tuple(v) if k == "betas" else v for k, v in values.items()})
        for glob, values in groups.items()
    }


def problems_of(groups: Mapping[str, Any], path: str) -> list[str]:
    """Everything wrong with the values, each with what is allowed; names are not known here."""
    found = []
    for glob, values in groups.items():
        place = f"{path}[{glob}]"
        if not isinstance(glob, str) or not isinstance(values, Mapping) or not values:
            found.append(f"{place}={values!r}; give {{NAME: {{lr: FACTOR}}}}, of {', '.join(KEYS)}")
            continue
        for key, value in values.items():
            if key not in KEYS:
                found.append(f"{place}.{key} is unknown; known here: {', '.join(KEYS)}")
            elif key == "betas":
                if not (_is_list(value) and len(value) == 2 and all(_within(b, 1) for b in value)):
                    found.append(f"{place}.betas={value!r}; two numbers from 0 to below 1")
            elif not (_is_number(value) and value >= 0):
                found.append(f"{place}.{key}={value!r}; a number, 0 or more")
    return found


def freeze(groups: Mapping[str, Mapping[str, Any]], parameters: Named) -> None:
    """Ends the training of what has factor 0; call it before anything follows the weights.

    Raises ValueError for every glob that names nothing that is trained, with the nearest names, and
    when nothing is left.
    """
    trained = {name: p for name, p in parameters if p.requires_grad}
    rules, problems = rules_of(groups), []
    chosen = {name: _glob_of(name, rules) for name in trained}
    for glob in rules:
        matched = matching(trained, glob)
        if not matched:
            problems.append(
                f"training.optim.groups: {glob!r} names nothing that is trained; nearest: "
                f"{nearest(glob, trained)}"
            )
        elif glob not in chosen.values():
            problems.append(
                f"training.optim.groups: {glob!r} names nothing that {chosen[matched[0]]!r} has "
                "not taken; the first glob counts, so put the narrower one first"
            )
    frozen = [name for name, glob in chosen.items() if glob is not None and rules[glob].lr == 0]
    if trained and len(frozen) == len(trained):
        problems.append("training.optim.groups: every parameter has lr 0; nothing would be trained")
    if problems:
        raise ValueError("\n".join(problems))
    for name in frozen:
        trained[name].requires_grad_(False)


def parameter_groups(
    groups: Mapping[str, Mapping[str, Any]], parameters: Named, *, lr: float, weight_decay: float
) -> list[ParameterGroup]:
    """Groups for the optimiser: matrices decay, vectors (norms, biases) do not.

    First what no glob names, so that the rate of group 0 is the run's; then glob by glob.
    """
    rules = rules_of(groups)
    members: dict[str | None, list[nn.Parameter]] = {glob: [] for glob in (None, *rules)}
    for name, parameter in parameters:
        if parameter.requires_grad:
            members[_glob_of(name, rules)].append(parameter)
    found: list[ParameterGroup] = []
    for glob, own in members.items():
        rule = Rule() if glob is None else rules[glob]
        settings: ParameterGroup = {} if glob is None else {"lr": lr * rule.lr}
        if rule.betas is not None:
            settings["betas"] = rule.betas
        decay = weight_decay if rule.weight_decay is None else rule.weight_decay
        matrices, vectors = [p for p in own if p.ndim > 1], [p for p in own if p.ndim <= 1]
        for part, value in ((matrices, decay), (vectors, 0.0)):
            if part:
                found.append({"params": part, "weight_decay": value, **settings})
    return found


def _glob_of(name: str, rules: Mapping[str, Rule]) -> str | None:
    """The first glob that matches; None without one."""
    return next((glob for glob in rules if matching([name], glob)), None)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _within(value: Any, end: float) -> bool:
    return _is_number(value) and 0 <= value < end
