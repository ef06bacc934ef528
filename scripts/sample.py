"""Draws pictures: `python scripts/sample.py checkpoint=tiny prompt="a red circle"`."""

from ldm.app import sample
from ldm.cli import run

if __name__ == "__main__":
    run(sample, config="sample")
