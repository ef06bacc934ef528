"""Makes the embedded stack: `python scripts/pack_tiny.py part=vae input=runs/vae_tiny`."""

from ldm.app import pack_tiny
from ldm.cli import run

if __name__ == "__main__":
    run(pack_tiny, config="pack_tiny")
