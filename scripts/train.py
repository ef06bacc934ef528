"""Trains a model: `python scripts/train.py experiment=quickstart`."""

from ldm.app import train
from ldm.cli import run

if __name__ == "__main__":
    run(train, config="train")
