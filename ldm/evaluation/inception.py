"""What does the network behind published FIDs see? Needs the extra `fid`, and its weights once.

Through torchmetrics and torch-fidelity's port of the TensorFlow network of Heusel et al. 2017.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.evaluation.features import BATCH, ExtractorSpec
from ldm.evaluation.preset import INCEPTION
from ldm.images import flattened

DIM = 2048


class InceptionExtractor:
    """The 2048 features before the last layer; the network resizes to 299 px by itself.

    Raises ValueError without the extra, FileNotFoundError without its weights.
    """

    def __init__(self, *, device: torch.device | str = "cpu", batch_size: int = BATCH) -> None:
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            # without antialiasing, as in TensorFlow 1: what published FIDs were measured with
            network = NoTrainInceptionV3("inception-v3-compat", [str(DIM)], None, antialias=False)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"extractor={INCEPTION} needs the extra fid (torch-fidelity, torchvision): "
                f"pip install -e '.[fid]' ({error}); tiny, a CLIP or a DINOv2 need none"
            ) from error
        except OSError as error:  # of the download
            raise FileNotFoundError(
                f"the weights of extractor={INCEPTION} cannot be downloaded ({error}): put "
                f"pt_inception-2015-12-05-6726825d.pth into {torch.hub.get_dir()}/checkpoints"
            ) from error
        self._network, self._device, self._batch = network.to(device), device, batch_size
        self.spec = ExtractorSpec(
            name=INCEPTION,
            dim=DIM,
            resize="bilinear to 299x299 as TensorFlow 1",
            hash=_hash(network),
        )

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """-> [B,2048] float32 on the CPU."""
        sizes = sorted({picture.size for picture in pictures})
        if len(sizes) != 1:
            raise ValueError(f"pictures have sizes {sizes}: give pictures of one size, one or more")
        stacked = np.stack([np.asarray(flattened(picture)) for picture in pictures])
        pixels = torch.from_numpy(stacked).movedim(-1, 1)  # uint8 [B,3,H,W]
        spare = -len(pixels) % self._batch  # full batches: a row's bits do not depend on the others
        padded = torch.cat([pixels, pixels[:1].expand(spare, -1, -1, -1)])
        parts = [
            self._network(part.to(self._device)).float().cpu()
            for part in torch.split(padded, self._batch)
        ]
        return torch.cat(parts)[: len(pixels)]


def _hash(network: torch.nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
