"""What does `evaluate` do with models: draw, measure, compare, report?"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def evaluate(cfg: Config) -> int:
    """Draws with every model, measures, compares and reports, on any number of devices."""
    from ldm.app.evaluation.request import read_request

    request = read_request(cfg)  # what is wrong is said before anything heavy is imported
    from ldm.app.evaluation.run import run

    return run(request, devices=cfg["devices"], device=cfg["device"])
