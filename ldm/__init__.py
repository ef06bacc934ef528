"""A training framework for text-to-image latent diffusion. `ldm.load(path)` gives a Pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.pipeline import Pipeline, load

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__", "load"]


def __getattr__(name: str) -> Any:  # on use: `import ldm` stays light
    if name in ("Pipeline", "load"):
        from ldm import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
