"""Lists training samples that look wrong: `python scripts/suspects.py checkpoint=runs/mine`."""

from ldm.app import suspects
from ldm.cli import run

if __name__ == "__main__":
    run(suspects, config="suspects")
