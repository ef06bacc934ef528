"""What is scripts/train.py with a fault in it? LDM_FAULT says which: see breaking.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import breaking

from ldm.app import train
from ldm.cli import run

if __name__ == "__main__":
    fault = json.loads(os.environ["LDM_FAULT"])
    breaking.arm(**fault)
    try:
        run(train, config="train")
    except SystemExit as end:
        Path(os.environ["LDM_NOTES"], f"exit-{breaking.rank()}").write_text(str(end.code))
        raise
