"""What does `convert` do with a model, and what does it show?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ldm.app.recipes import asked_adapters
from ldm.check import missing_values, primary_problems, type_problem
from ldm.cli import CONF, ConfigError
from ldm.parts import raise_all

log = logging.getLogger(__name__)
Config = dict[str, Any]
TYPES: dict[str, Any] = {
    **dict.fromkeys(("with_ema", "verify", "overwrite"), bool),
    "scale": float | None,
    **dict.fromkeys(("size", "rank", "text_rank"), int | None),
    "adapter": str | list[str] | None,
}
OF_ADAPTERS = ("base", "rank", "text_rank")  # keys of the formats of convert_adapter


def convert(cfg: Config) -> int:
    """Writes a model in another format. Returns 1 when what was written is not what was read."""
    problems = primary_problems(cfg, CONF / "convert.yaml") + missing_values(cfg, "")
    for key, hint in TYPES.items():
        problems += type_problem(cfg[key], hint, key)
    raise_all(problems)
    from ldm.io import convert as conversions
    from ldm.io.convert_adapter import FORMATS

    if cfg["format"] in FORMATS:
        return _convert_adapter(cfg)
    from ldm.io.said import Hints

    hints = Hints(**{k: cfg[k] for k in ("prediction", "schedule", "scale", "size", "tokenizer")})
    options = ("input", "format", "weights", "dtype", "with_ema", "overwrite", "licence")
    console = Console()
    try:
        raise_all(
            [
                f"{key} belongs to format={', '.join(FORMATS)}"
                for key in OF_ADAPTERS
                if cfg[key] is not None
            ]
        )
        job = conversions.Conversion(
            output=Path(cfg["output"]),
            hints=hints,
            adapters=tuple(asked_adapters(cfg["adapter"] or [])),
            **{k: cfg[k] for k in options},
        )
        parts = conversions.convert(job)
        lost = conversions.not_carried(parts, job.format)
        if lost:
            console.print(
                f"{len(lost)} tensors that the model does not use have no place in a "
                f"diffusers folder: {', '.join(lost[:3])}, …"
            )
        if not cfg["verify"]:
            console.print(f"{job.output} is written, not verified", highlight=False, soft_wrap=True)
            return 0
        rows = conversions.verify(parts, job.output)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    shown = conversions.table(rows)
    report = Table(*shown[0], title=str(job.output))
    for row in shown:
        report.add_row(*(str(value) for value in row.values()))
    console.print(report)
    good = all(row.good for row in rows)
    console.print("verified: what was read back is what was written" if good else "NOT equal")
    return 0 if good else 1


def _convert_adapter(cfg: Config) -> int:
    """Writes an adapter alone, which is always read back."""
    from ldm.io.convert_adapter import AdapterConversion, convert_adapter

    options = ("input", "format", "weights", "dtype", "overwrite", *OF_ADAPTERS)
    defaults = yaml.safe_load((CONF / "convert.yaml").read_text(encoding="utf-8"))
    try:
        raise_all(
            [
                f"{key}={cfg[key]} has no meaning with format={cfg['format']}, which writes an "
                "adapter alone"
                for key in defaults
                if key not in (*options, "output") and cfg[key] != defaults[key]
            ]
        )
        job = AdapterConversion(output=Path(cfg["output"]), **{k: cfg[k] for k in options})
        counts = convert_adapter(job)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    told = ", ".join(f"{count} tensors of {part}" for part, count in counts.items())
    Console().print(f"{job.output}: {told}, read back equal", highlight=False, soft_wrap=True)
    return 0
