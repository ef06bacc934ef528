"""What may a process leave out while it starts?"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 300  # modules: more than a part of our own brings, fewer than a library of the heavy ones


@contextmanager
def without_sweeps() -> Iterator[None]:
    """Inside, Python's garbage collector rests: for imports, of which nearly all stays.

    It would go through a million of their objects again and again, a fifth of the time that they
    take. What many imports have left is never swept afterwards, either (gc.freeze), and loader
    processes that are forked do not copy it; other objects are left alone, or the models of one run
    would live through the next in the same process.
    """
    was_on, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - before > MANY:
            gc.freeze()
        if was_on:
            gc.enable()
