"""How does a text encoder get a new word (textual inversion, Gal et al. 2022)?

n vectors, D width of the embedding. The embedding's own rows are neither trained nor copied: ids
above its last row are the new word's, and a hook puts the trained vectors where they stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.adapters.attach import Adapter, Part


class NewToken(Adapter):
    """`token` stands for n vectors. ids: where they are, given by the text encoder that learns it
    (TextEncoder.learn), before it is attached."""

    def __init__(self, token: str, vectors: Tensor) -> None:
        super().__init__()
        if vectors.ndim != 2 or not len(vectors):
            raise ValueError(f"the vectors of {token!r} are {tuple(vectors.shape)}; give [n,D]")
        self.token = token
        self.rows = Rows(vectors)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], base: nn.Module) -> NewToken:
        """As described by `spec()`, without weights: on the meta device. Raises ValueError."""
        return cls(spec["token"], torch.empty(spec["vectors"], spec["width"], device="meta"))

    def spec(self) -> dict[str, Any]:
        count, width = self.vectors.shape
        return {"kind": "token", "token": self.token, "vectors": count, "width": width}

    @property
    def vectors(self) -> Tensor:
        return self.rows.vectors

    def hook(self, base: nn.Module) -> None:
        if len(self.rows.ids) != len(self.vectors):
            raise ValueError(f"{self.token!r} has no ids yet; the text encoder must learn it first")
        embedding = embedding_of(base)
        if embedding.embedding_dim != self.vectors.shape[1]:
            raise ValueError(
                f"{self.token!r} is for another text encoder: its vectors are "
                f"{self.vectors.shape[1]} wide, the embedding here {embedding.embedding_dim}"
            )
        embedding.register_forward_pre_hook(self.rows.take_out)
        embedding.register_forward_hook(self.rows.put_in)

    def merge_into(self, base: nn.Module, strength: float) -> None:
        raise ValueError(
            f"the new word {self.token!r} cannot be merged: there is no row for it; keep it "
            "attached, or write it with format=embedding"
        )


class Rows(Part):
    """The hooks' owner. strength scales the vectors."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self._ids: Sequence[int] = ()
        self._own: Tensor | None = None  # the ids, where they are compared
        self._places: Tensor | None = None  # of the ids in the batch that is being embedded

    @property
    def ids(self) -> Sequence[int]:
        """Where the vectors are."""
        return self._ids

    @ids.setter
    def ids(self, ids: Sequence[int]) -> None:
        self._ids, self._own = ids, None

    def take_out(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The forward pre-hook: no row of the embedding has these ids."""
        ids = inputs[0]
        if self._own is None or self._own.device != ids.device:
            self._own = torch.tensor(self.ids, device=ids.device)
        own = self._own
        found = ids[..., None] == own  # [...,n]
        hit = found.any(-1)
        self._places = torch.where(hit, found.int().argmax(-1), -1)
        return (torch.where(hit, 0, ids), *inputs[1:])

    def put_in(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The forward hook: [...,D] with the vectors where their ids stood."""
        places, self._places = self._places, None
        assert places is not None
        own = (self.strength * self.vectors)[places.clamp(min=0)].to(output.dtype)
        return torch.where((places >= 0)[..., None], own, output)


def embedding_of(base: nn.Module) -> nn.Embedding:
    """The table of a text encoder's words: its embedding with the most rows."""
    tables = [module for module in base.modules() if isinstance(module, nn.Embedding)]
    if not tables:
        raise ValueError(f"this {type(base).__name__} has no embedding of words")
    return max(tables, key=lambda table: table.num_embeddings)
