"""What does `sample` do with a model?"""

from __future__ import annotations

import logging
from typing import Any

from ldm.cli import ConfigError
from ldm.parts import check_drawing, raise_all

log = logging.getLogger(__name__)
Config = dict[str, Any]


def sample(cfg: Config) -> int:
    """Draws what is asked for into a folder, on any number of devices."""
    raise_all(check_drawing(cfg, "sample"))
    from ldm.app.pictures import draw_wishes
    from ldm.app.recipes import EXPECTED, read_wishes
    from ldm.training.launch import launch

    try:
        wishes = read_wishes(cfg)
        with launch(cfg["devices"], cfg["device"]) as processes:
            try:
                draw_wishes(cfg, wishes, processes)
            except ConfigError:
                if processes.rank == 0:  # says it for all
                    raise
    except EXPECTED as error:
        raise ConfigError(str(error)) from error
    return 0
