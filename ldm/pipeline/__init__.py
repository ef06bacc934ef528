"""How does a prompt become a picture? `Pipeline` and its modes, and `load`, which finds one."""

from ldm.pipeline.loading import load
from ldm.pipeline.options import SamplingDefaults, SamplingOptions
from ldm.pipeline.pictures import Between, Drawn, Picture
from ldm.pipeline.pipeline import Pipeline, Progress

__all__ = [
    "Between",
    "Drawn",
    "Picture",
    "Pipeline",
    "Progress",
    "SamplingDefaults",
    "SamplingOptions",
    "load",
]
