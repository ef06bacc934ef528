"""Converts: `python scripts/convert.py input=runs/a output=a.safetensors format=single`."""

from ldm.app import convert
from ldm.cli import run

if __name__ == "__main__":
    run(convert, config="convert")
