"""Scores a model: `python scripts/evaluate.py checkpoint=tiny`."""

from ldm.app import evaluate
from ldm.cli import run

if __name__ == "__main__":
    run(evaluate, config="evaluate")
