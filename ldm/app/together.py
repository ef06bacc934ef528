"""How do all processes learn that one of them has failed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ldm.app.recipes import EXPECTED
from ldm.cli import ConfigError
from ldm.training.launch import Devices, Processes, launch

T = TypeVar("T")


def together(processes: Processes, work: Callable[[], T]) -> T:
    """The result of `work`, which enters no collective; when it fails in one process, all raise
    what is wrong there."""
    result, problem = None, None
    try:
        result = work()
    except EXPECTED as error:
        problem = str(error)
    for text in processes.gather(problem):
        if text:
            raise ConfigError(text)
    return result  # type: ignore[return-value]


def on_all(work: Callable[[Processes], None], *, devices: Devices, device: str) -> int:
    """Runs `work` on all processes and gives the exit code. Raises ConfigError in the first
    process, for all."""
    problem = None
    try:
        with launch(devices, device) as processes:
            try:
                work(processes)
            except ConfigError as error:  # on all: they can part
                problem = error if processes.rank == 0 else None
    except EXPECTED as error:
        raise ConfigError(str(error)) from error
    if problem is not None:
        raise problem
    return 0
