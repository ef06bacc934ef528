"""Will this run work? The parts of `doctor`, one chapter a file."""

from ldm.app.doctor.examine import doctor

__all__ = ["doctor"]
