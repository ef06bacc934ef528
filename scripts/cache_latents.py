"""Encodes pictures once: `python scripts/cache_latents.py data.train.shards=shards out=cache`."""

from ldm.app import cache_latents
from ldm.cli import run

if __name__ == "__main__":
    run(cache_latents, config="cache_latents")
