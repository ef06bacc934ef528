"""How are many short runs started and killed without importing torch each time?

A server: each line of stdin is a run, {"cfg", "fault", "log", "world", "notes"}; its `world`
processes are forked off one that has imported everything and computed nothing. The answer on
stdout is their exit statuses. notes: a folder for the samples that each of them trains on, or null.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from typing import Any

import breaking

import ldm.pipeline
import ldm.training.datamodule
import ldm.training.trainer  # noqa: F401
from ldm import app
from ldm.training.callbacks import curves


def child(order: dict[str, Any], environment: dict[str, str]) -> int:
    os.environ.update(environment)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    curves.plot = lambda source, target: None  # as long as two steps
    breaking.arm(**order["fault"])
    if order["notes"] is not None:
        breaking.note_samples(order["notes"])
    try:
        return app.train(order["cfg"])
    except BaseException:
        traceback.print_exc()
        return 1


def as_torchrun_does(world: int) -> list[dict[str, str]]:
    """The variables of each process on one machine; none for a process alone."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    common |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0"}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pids = []
        for environment in as_torchrun_does(order["world"]):
            pid = os.fork()
            if pid == 0:
                os._exit(child(order, environment))
            pids.append(pid)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        sys.stdout.write(f"{json.dumps(statuses)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
