"""How much memory do tensors take at once during a training step?

On a GPU the allocator counts it. On a CPU the profiler writes down every allocation and release.
Not resident memory, which also has what the allocator keeps.
"""

from __future__ import annotations

import gc
import warnings
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


class Peak:
    """The most from `start` on, weights and all, in steps of which each is like the one before.

    Two of them at least: the profiler does not see the release of what was there before it.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._profile: profile | None = None

    def start(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.start()

    def mib(self) -> float:
        """Ends the measurement."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated() / MIB
        assert self._profile is not None
        self._profile.stop()
        return (live_bytes() + above_the_end(changes(self._profile))) / MIB


def changes(done: profile) -> list[int]:
    """Bytes that each allocation took, or gave back when negative, in the order of time."""
    assert done.profiler is not None
    results: Any = done.profiler.kineto_results
    assert results is not None
    found = [event for event in results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(found, key=lambda event: event.start_ns())]


def above_the_end(steps: list[int]) -> int:
    """How much higher than at its end the running sum ever was."""
    return max(accumulate(steps, initial=0)) - sum(steps)


def live_bytes() -> int:
    """Of all tensors that Python knows, and their gradients; each storage once."""
    gc.collect()
    storages = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects that warn when they are looked at
        tensors = [value for value in gc.get_objects() if isinstance(value, Tensor)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    for tensor in tensors:
        real = tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)
        if real and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
