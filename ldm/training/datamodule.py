"""How do batches reach the Trainer?"""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L

from ldm.data.source import Data
from ldm.training.base import Batch, TrainedModule


class DataModule(L.LightningDataModule):
    """Builds the training stream from the module's `samples_seen`.

    Lightning asks for the loader after it has restored the checkpoint, so a resume is a seek.
    """

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> Iterable[Batch]:
        trainer = self.trainer
        assert trainer is not None
        module = trainer.lightning_module
        assert isinstance(module, TrainedModule)
        return self.data.train_loader(
            micro_batch=module.plan.micro_global,
            rank=trainer.global_rank,
            world=trainer.world_size,
            start=module.samples_seen,
            pin_memory=module.device.type == "cuda",
        )
