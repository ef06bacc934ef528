"""What does `suspects` do: measure every sample, judge, list, show?"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def suspects(cfg: Config) -> int:
    """Lists the training samples that look wrong, on any number of devices."""
    from ldm.app.suspects.request import read_request

    request = read_request(cfg)  # what is wrong is said before anything heavy is imported
    from ldm.app.suspects.run import run

    return run(request, devices=cfg["devices"], device=cfg["device"])
