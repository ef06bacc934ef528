"""What does `sample` do with a model?"""

from __future__ import annotations

from functools import partial
from typing import Any

from ldm.cli import ConfigError
from ldm.parts import check_drawing, raise_all

Config = dict[str, Any]


def sample(cfg: Config) -> int:
    """Draws what is asked for into a folder, on any number of devices."""
    raise_all(check_drawing(cfg, "sample"))
    from ldm.app.pictures import draw_wishes
    from ldm.app.recipes import EXPECTED, read_wishes
    from ldm.app.together import on_all

    try:
        wishes = read_wishes(cfg)
    except EXPECTED as error:
        raise ConfigError(str(error)) from error
    work = partial(draw_wishes, cfg, wishes)
    return on_all(work, devices=cfg["devices"], device=cfg["device"])
