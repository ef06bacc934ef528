"""Writes shards: `python scripts/make_shards.py source=shapes out=data/shapes`."""

from ldm.app import make_shards
from ldm.cli import run

if __name__ == "__main__":
    run(make_shards, config="make_shards")
