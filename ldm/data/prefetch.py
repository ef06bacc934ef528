"""How are remote shards fetched before they are needed?"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from ldm.data.order import Order
from ldm.data.shards import ShardIndex

log = logging.getLogger(__name__)


@dataclass
class Prefetch:
    """A thread that keeps the shards of this group of the order, and of the next, in the cache.

    It fetches what its rank reads, shared out over the rank's workers. Reading does not depend on
    it: a shard that is not there yet is fetched by whoever reads it first.
    """

    index: ShardIndex
    order: Order
    rank: int
    world: int
    worker: int
    workers: int
    _needed: int = 0
    _moved: threading.Condition = field(default_factory=threading.Condition)
    _stopped: bool = False

    def start(self, at: int) -> None:
        """Begin with the group of sample `at`."""
        self._needed = self.order.group_end(at)  # the first sample of the next group
        thread = threading.Thread(target=self._run, args=(at,), name="prefetch", daemon=True)
        thread.start()

    def reached(self, at: int) -> None:
        """Tell that sample `at` is being read, so that the group after its own may be fetched."""
        if at >= self._needed:
            with self._moved:
                self._needed = self.order.group_end(at)
                self._moved.notify()

    def stop(self) -> None:
        """Fetch nothing more."""
        with self._moved:
            self._stopped = True
            self._moved.notify()

    def _run(self, at: int) -> None:
        while True:
            with self._moved:
                while not self._stopped and at > self._needed:
                    self._moved.wait()
            shards = self.order.shards_of_group(at, self.rank, self.world)
            for shard in shards[self.worker :: self.workers]:
                if self._stopped:
                    return
                try:
                    self.index.cache.local(self.index.shards[shard], self.index.stamps[shard])
                except OSError as error:  # the reader meets the same error, and reports it
                    log.warning("prefetch: %s", error)
            if self._stopped:
                return
            at = self.order.group_end(at)
