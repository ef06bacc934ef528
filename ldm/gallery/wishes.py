"""Which pictures are meant by what was asked for?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

# what a mode needs, and what else is of use to it
MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "txt2img": ((), ()),
    "img2img": (("init_image",), ("strength",)),
    "inpaint": (("init_image", "mask"), ("strength", "paste_back")),
    "interpolate": ((), ("to_prompt", "to_seed", "frames", "frame")),
    "invert": (("init_image",), ("to_prompt",)),
}
OF_SOME = {key for needed, useful in MODES.values() for key in (*needed, *useful)}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One picture; the fields are keys of conf/sample.yaml. None: the model's own default.

    frame: of an interpolation, its number out of `frames`.
    """

    mode: str
    prompt: str
    seed: int
    negative_prompt: str | None = None
    init_image: str | None = None
    mask: str | None = None
    strength: float | None = None
    paste_back: bool | None = None
    to_prompt: str | None = None
    to_seed: int | None = None
    frames: int | None = None
    frame: int | None = None
    steps: int | None = None
    sampler: str | None = None
    grid: str | None = None
    eta: float | None = None
    guidance: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, ...] | None = None
    threshold: float | None = None
    threshold_floor: float | None = None
    weighting: bool | None = None
    long_prompts: bool | None = None
    height: int | None = None
    width: int | None = None
    tiled: bool | None = None


def wishes(values: Mapping[str, Any]) -> list[Wish]:
    """Every picture of one request: each seed, and each frame of an interpolation.

    values: keys of conf/sample.yaml of the right types. Raises ValueError with all problems.
    """
    given = {key: value for key, value in values.items() if value is not None}
    mode = given.get("mode") or _mode(given)
    if problems := _problems(given, mode):
        raise ValueError("\n".join(problems))
    first, count = given.get("seed", 0), given.get("n", 1)
    seeds = given.get("seeds") or [first + k for k in range(count)]
    names = {field.name for field in fields(Wish)}
    shared = {key: value for key, value in given.items() if key in names}
    shared |= {"mode": mode, **_settled(given, mode)}
    frames = [shared.get("frame")]
    if mode == "interpolate" and frames == [None]:
        frames = list(range(shared["frames"]))
    return [Wish(**{**shared, "seed": seed, "frame": at}) for seed in seeds for at in frames]


def _mode(given: Mapping[str, Any]) -> str:
    if "mask" in given:
        return "inpaint"
    if "init_image" in given:
        return "img2img"
    return "interpolate" if "to_prompt" in given or "to_seed" in given else "txt2img"


def _settled(given: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """What a mode does unless told otherwise."""
    found: dict[str, Any] = {}
    if given.get("tiled") == "auto":
        found["tiled"] = None
    if "guidance_interval" in given:
        found["guidance_interval"] = tuple(map(float, given["guidance_interval"]))
    if mode == "img2img":
        found["strength"] = given.get("strength", 0.75)
    if mode == "inpaint":
        found |= {
            "strength": given.get("strength", 1.0),
            "paste_back": given.get("paste_back", True),
        }
    if mode == "interpolate":
        found["frames"] = given.get("frames", 8)
    if mode == "invert":  # guidance takes the way back elsewhere
        found["guidance"] = given.get("guidance", 1.0)
    return found


def _problems(given: Mapping[str, Any], mode: str) -> list[str]:
    if mode not in MODES:
        near = get_close_matches(mode, MODES, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return [f"mode={mode!r} is unknown{hint}; known: {', '.join(MODES)}"]
    found = []
    if "prompt" not in given:
        found.append('no prompt; give prompt="..."')
    if given.get("n", 1) < 1:
        found.append(f"n={given['n']}; give 1 or more pictures a prompt")
    if given.get("seeds") == []:
        found.append("seeds=[] names no picture; give at least one seed")
    needed, useful = MODES[mode]
    found += [f"{mode} needs {key}=..." for key in needed if key not in given]
    for key in sorted(OF_SOME & set(given) - {*needed, *useful}):
        users = [name for name, parts in MODES.items() if key in (*parts[0], *parts[1])]
        found.append(f"{key}={given[key]!r} is of no use to {mode}, only to {', '.join(users)}")
    if mode == "interpolate":
        found += _frame_problems(given)
    return found


def _frame_problems(given: Mapping[str, Any]) -> list[str]:
    found = []
    if "to_prompt" not in given and "to_seed" not in given:
        found.append("interpolate needs to_prompt=... or to_seed=... (or both)")
    frames, frame = given.get("frames", 8), given.get("frame", 0)
    if frames < 2:
        found.append(f"frames={frames}; give 2 or more, both ends count")
    elif not 0 <= frame < frames:
        found.append(f"frame={frame}; allowed: 0 to {frames - 1}")
    return found
