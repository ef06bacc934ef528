"""What does a configuration build? The composition root: one function a script."""

from ldm.app.startup import without_sweeps

with without_sweeps():
    from ldm.app.caching import cache_latents
    from ldm.app.convert import convert
    from ldm.app.doctor import doctor
    from ldm.app.drawing import sample
    from ldm.app.evaluation import evaluate
    from ldm.app.fit import train
    from ldm.app.shards import make_shards, pack_tiny
    from ldm.app.suspects import suspects

__all__ = [
    "cache_latents",
    "convert",
    "doctor",
    "evaluate",
    "make_shards",
    "pack_tiny",
    "sample",
    "suspects",
    "train",
]
