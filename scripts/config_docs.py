"""Writes docs/config.md from the comments in conf/: `python scripts/config_docs.py`."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parents[1] / "docs" / "generate.py"), run_name="__main__")
