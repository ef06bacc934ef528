"""What does the README.md of an exported model say?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ldm.io import checkpoint as files
from ldm.io.single_write import Parts
from ldm.io.source import Source

UNKNOWN = "not stated; ask whoever made the parent model before you pass it on"


def write_model_card(
    path: Path, parts: Parts, source: Source, *, licence: str | None, name: str
) -> None:
    """README.md with a head that model hubs read; the run's newest sample grid beside it."""
    picture = _newest_grid(source)
    if picture is not None:
        copied = path.with_name(path.name.replace("README.md", "samples.png"))
        shutil.copyfile(picture, copied)
        picture = copied
    files.write_text(path, _text(parts, source, licence, name, picture))


def _text(
    parts: Parts, source: Source, licence: str | None, name: str, picture: Path | None
) -> str:
    card = parts.card
    objective, sampling = card["objective"], card["sampling"]
    prediction = objective["prediction"]["name"]
    parent = card.get("parent") or {}
    rows = {
        "what": _what(card),
        "weights": f"{parts.weights}{_seen(card)}",
        "from": f"{source.path.name} ({source.form})"
        + (f", which began from {parent.get('source')}" if parent else ""),
        "hash of the input": files.file_hash(source.file) if source.file.is_file() else "–",
        "licence": licence or UNKNOWN,
        "predicts": f"{prediction}, schedule {_spec(objective['schedule'])}",
        "latents": f"scaled by {card['vae']['config']['scaling_factor']}",
        "text encoder": f"{card['text']['kind']}, null context {card['null']!r}",
        "sampling defaults": ", ".join(f"{k} {v}" for k, v in sampling.items()),
    }
    head = {"pipeline_tag": "text-to-image"}
    if licence:
        head["license"] = licence
    lines = ["---", *(f"{k}: {v}" for k, v in head.items()), "---", "", f"# {name}", ""]
    lines += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items()), ""]
    if picture is not None:
        lines += [f"![samples]({picture.name})", ""]
    lines += ["```python", "import ldm", "", f'pipe = ldm.load("{name}")']
    lines += ['pipe.txt2img(["a photograph of an astronaut"], seeds=[0])', "```", ""]
    if parent:
        lines += ["## Lineage", "", "```json", json.dumps(parent, indent=1), "```", ""]
    return "\n".join(lines)


def _what(card: dict[str, Any] | Any) -> str:
    unet = card["unet"]
    kind = "inpainting" if unet["in_channels"] > unet["out_channels"] else "text to image"
    widths = "/".join(map(str, unet["block_out_channels"]))
    return (
        f"latent diffusion, {kind}: UNet of widths {widths}, context {unet['cross_attention_dim']},"
        f" {' × '.join(map(str, card['sampling']['size']))} px"
    )


def _seen(card: Any) -> str:
    seen = card.get("samples_seen")
    return f", {seen:,} samples seen" if seen else ""


def _spec(spec: dict[str, Any]) -> str:
    rest = ", ".join(f"{k} {v}" for k, v in spec.items() if k != "name")
    return f"{spec['name']} ({rest})"


def _newest_grid(source: Source) -> Path | None:
    """A run folder's last sample grid."""
    if not source.path.is_dir():
        return None
    grids = sorted((source.path / "samples").glob("*.png"), key=lambda p: p.stat().st_mtime)
    return grids[-1] if grids else None
