"""How many pictures at once, and what happens when memory runs out?"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import torch

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
BatchSize = int | Literal["auto"]
AT_ONCE = 16 * 64 * 64  # latent positions at once on an accelerator: 16 pictures of 512 px
MOST = 64  # pictures at once, however small


def first_size(asked: BatchSize, *, positions: int, count: int, device: torch.device) -> int:
    """The batch size to begin with. positions: of one picture's latents; count: pictures in all.

    auto: on an accelerator as many as usually fit, on a CPU one: there a larger batch is hardly
    faster, and pictures of one have the same bits whatever else is drawn. Raises ValueError.
    """
    if asked == "auto":
        if device.type == "cpu":
            return 1
        most = max(1, min(MOST, AT_ONCE // positions))
        batches = -(-count // most)
        return -(-count // max(1, batches)) or 1  # as many batches, equally full
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ValueError(f"batch_size={asked!r}; give 1 or more, or auto")
    return asked


class Batches:
    """A batch size that halves when memory runs out, and stays halved.

    Every batch is full: a short one is filled up with copies of its last item, whose results are
    dropped. What a library computes for one row may change in the last bits with the number of
    rows, never with what the others hold; so an item's result depends on the size alone.
    """

    def __init__(self, size: int, *, advice: str) -> None:
        self.size = size
        self._advice = advice

    def run(
        self, items: Sequence[T], work: Callable[[list[T]], Sequence[R]]
    ) -> Iterator[tuple[int, Sequence[R]]]:
        """Yields (batch size, results) in the order of the items.

        Raises MemoryError with the advice when even one item is too much; all earlier results have
        been given out then.
        """
        start = 0
        while start < len(items):
            size = self.size
            part = list(items[start : start + size])
            filled = part + [part[-1]] * (size - len(part))
            done = self._attempt(filled, work)
            if done is not None:
                yield size, done[: len(part)]
                start += len(part)

    def _attempt(
        self, items: list[T], work: Callable[[list[T]], Sequence[R]]
    ) -> Sequence[R] | None:
        """The results, or None when memory ran out and the size is now half."""
        try:
            return work(items)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            if self.size == 1:
                raise MemoryError(
                    f"out of memory with one picture at a time; {self._advice}"
                ) from error
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # here the error and the tensors that its frames hold are gone
        self.size //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory (%s); going on with batch_size=%d", reason, self.size)
        return None


def _is_memory(error: Exception) -> bool:
    """Accelerators have a class for it; the CPU's allocator raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return "not enough memory" in text or "can't allocate memory" in text
