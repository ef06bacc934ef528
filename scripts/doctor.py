"""Looks at a run before it costs anything: `python scripts/doctor.py experiment=quickstart`."""

from ldm.app import doctor
from ldm.cli import run

if __name__ == "__main__":
    run(doctor, config="doctor")
