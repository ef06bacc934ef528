"""How does a model change its format, and how is it shown that nothing was lost?"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.io.diffusers_write import save_folder
from ldm.io.load import Model, build, open_source
from ldm.io.merged import has_adapters, merged
from ldm.io.modelcard import write_model_card
from ldm.io.native import complete_card, save_run
from ldm.io.said import Hints
from ldm.io.single_write import Parts, save_single
from ldm.io.source import Source, Tensors, shape_of, stream
from ldm.models.dtypes import DTYPES

log = logging.getLogger(__name__)
FORMATS = ("single", "diffusers", "native")
FORWARD = 1e-5  # largest difference of one forward pass in fp32; the weights are equal bit for bit


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is converted, and how. dtype None: every part as it is stored.

    with_ema: format=single also holds the averaged weights beside the raw ones. adapters: path and
    strength of each that is merged into the weights, after those that the model itself has.
    """

    input: str
    output: Path
    format: str
    weights: str = "ema"
    dtype: str | None = None
    with_ema: bool = False
    overwrite: bool = False
    licence: str | None = None
    hints: Hints | None = None
    adapters: tuple[tuple[str, float], ...] = ()

    def problems(self) -> list[str]:
        """Everything wrong with the options, before any file is read."""
        found = []
        if self.format not in FORMATS:
            found.append(f"format={self.format!r}; allowed: {', '.join(FORMATS)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            found.append(f"dtype={self.dtype!r}; allowed: {', '.join(DTYPES)}, or null")
        suffixes = (".safetensors", ".ckpt")
        if self.format == "single" and self.output.suffix not in suffixes:
            found.append(f"output={self.output}: a single file ends in {' or '.join(suffixes)}")
        if self.format != "single" and self.output.suffix in suffixes:
            found.append(f"output={self.output}: format={self.format} writes a folder")
        if self.with_ema and (self.format != "single" or self.weights != "raw"):
            found.append("with_ema=true belongs to format=single weights=raw (native keeps both)")
        if self.output.exists() and not self.overwrite:
            found.append(f"output={self.output} exists; overwrite=true replaces it")
        return found


@dataclass(frozen=True)
class Row:
    """What became of one part. forward: largest difference of a forward pass, None: not run."""

    part: str
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    different: tuple[str, ...]
    forward: float | None

    @property
    def good(self) -> bool:
        lost = self.missing or self.unexpected or self.different
        return not lost and (self.forward is None or self.forward <= FORWARD)


def convert(conversion: Conversion) -> Parts:
    """Writes beside the target and renames, so that a failure leaves nothing half-written.

    Raises ValueError with every problem, FileNotFoundError.
    """
    problems = conversion.problems()
    if problems:
        raise ValueError("\n".join(problems))
    source = open_source(conversion.input, weights=conversion.weights, hints=conversion.hints)
    if conversion.adapters or has_adapters(source):
        if conversion.with_ema:
            raise ValueError("with_ema=true keeps two networks; adapters are merged into one")
        source = merged(source, conversion.adapters, weights=conversion.weights)
    parts = parts_of(source, DTYPES.get(conversion.dtype or ""))
    if conversion.format != "native" and parts.codec.problems():
        raise ValueError(
            f"format={conversion.format} holds the autoencoder too, and that of "
            f"{conversion.input} is not here (models/vae=foreign); format=native does without"
        )
    log.info("%s is a %s model, %s weights", conversion.input, source.form, parts.weights)
    target = conversion.output
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{target.name}")
    _remove(temporary)
    try:
        if conversion.format == "single":
            save_single(temporary, parts, with_ema=conversion.with_ema)
            card = target.with_name(f"{target.stem}.README.md")
        else:
            save = save_folder if conversion.format == "diffusers" else save_run
            save(temporary, parts)
            card = temporary / "README.md"
        write_model_card(card, parts, source, licence=conversion.licence, name=target.name)
        _replace(temporary, target)
    except BaseException:
        _remove(temporary)
        raise
    return parts


def parts_of(source: Source, dtype: torch.dtype | None = None) -> Parts:
    """A source's parts, all in `dtype` or each as it is stored."""
    codec = source.codec(dtype or source.dtypes["vae"])
    text = source.text().cast(dtype or source.dtypes["text"])
    parts = Parts(
        card=source.card,
        networks=source.networks,
        weights=source.weights,
        codec=codec,
        text=text,
        dtype=dtype,
        extras=source.extras,
    )
    return replace(parts, card=complete_card(parts))


def verify(parts: Parts, output: Path) -> list[Row]:
    """Reads what was written and compares every tensor, and one forward pass of every part."""
    written = open_source(output, weights=parts.weights)
    again = parts_of(written)
    rows = [_row("unet", _network(parts), _network(again))]
    rows += [
        _row(f"unet ({kind}, too)", parts.networks[kind], written.networks[kind], parts.dtype)
        for kind in written.networks
        if kind != written.weights
    ]
    rows += [
        _row("vae", dict(parts.codec.vae.state_dict()), dict(again.codec.vae.state_dict())),
        _row("text", _text(parts), _text(again)),
    ]
    if written.form != "diffusers":
        rows.append(_row("unused, kept", parts.extras, again.extras))
    one, other = _models(parts, written)
    forward = _forward(one, other)
    return [replace(row, forward=forward.get(row.part)) for row in rows]


def not_carried(parts: Parts, fmt: str) -> list[str]:
    """Names of the input that the format has no place for."""
    return sorted(parts.extras) if fmt == "diffusers" else []


def _row(part: str, one: Tensors, other: Tensors, dtype: torch.dtype | None = None) -> Row:
    common = [name for name in one if name in other]
    shapes = {n for n in common if shape_of(one, n) != shape_of(other, n)}
    same = [name for name in common if name not in shapes]
    values = dict(stream(one, same, dtype))
    different = {
        name for name, value in stream(other, same, None) if not _equal(values[name], value)
    }
    return Row(
        part=part,
        matched=len(same) - len(different),
        missing=tuple(sorted(set(one) - set(other))),
        unexpected=tuple(sorted(set(other) - set(one))),
        different=tuple(sorted(different | shapes)),
        forward=None,
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _network(parts: Parts) -> dict[str, Tensor]:
    tensors = parts.networks[parts.weights]
    return dict(stream(tensors, list(tensors), parts.dtype))


def _text(parts: Parts) -> dict[str, Tensor]:
    return dict(parts.text.module.state_dict())


def _models(parts: Parts, written: Source) -> tuple[Model, Model]:
    """Before and after, both in fp32."""
    before = Source(
        form="document",
        path=Path("input"),
        card=dict(parts.card),
        networks={parts.weights: _network(parts)},
        weights=parts.weights,
        file=Path("input"),
        codec=lambda dtype: parts.codec,
        text=lambda: parts.text,
        dtypes={},
    )
    return build(before), build(written)


@torch.no_grad()
def _forward(one: Model, other: Model) -> dict[str, float]:
    """Largest difference by part, on the same small input."""
    random = torch.Generator().manual_seed(0)
    config = one.unet.config
    side = 2 ** len(config.block_out_channels)
    x = torch.randn(1, config.in_channels, side, side, generator=random)
    z = torch.randn(1, one.codec.latent_channels, 4, 4, generator=random)
    differences: dict[str, list[Tensor]] = {"unet": [], "vae": [], "text": []}
    for model in (one, other):
        cond = model.text.to("cpu").cast(torch.float32).encode(["a photo of a cat"])
        if cond.context is not None:
            differences["text"].append(cond.context)
        t = torch.tensor([500.0])
        differences["unet"].append(model.unet(x, t, cond.context, cond.mask))
        if not model.codec.problems():
            model.codec.vae.to(torch.float32)
            differences["vae"].append(model.codec.decode(z))
    return {
        part: float((pair[0] - pair[1]).abs().max()) for part, pair in differences.items() if pair
    }


def _replace(temporary: Path, target: Path) -> None:
    """Renames; a folder that is overwritten is moved away first."""
    if target.is_dir():
        old = target.with_name(f".old-{target.name}")
        _remove(old)
        target.rename(old)
        temporary.rename(target)
        _remove(old)
    else:
        temporary.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def table(rows: list[Row]) -> list[Mapping[str, Any]]:
    """The rows in words, for printing."""
    return [
        {
            "part": row.part,
            "matched": row.matched,
            "missing": _words(row.missing),
            "unexpected": _words(row.unexpected),
            "different": _words(row.different),
            "forward": "–" if row.forward is None else f"{row.forward:.1e}",
        }
        for row in rows
    ]


def _words(names: tuple[str, ...]) -> str:
    return f"{len(names)}" + (f" ({names[0]}, …)" if names else "")
