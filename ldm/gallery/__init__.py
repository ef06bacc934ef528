"""Which pictures were asked for, and how are they kept with the recipes that made them?"""

from ldm.gallery.bar import progress_bar
from ldm.gallery.folder import Place, plan, write_manifest
from ldm.gallery.recipes import read_recipe, write_picture
from ldm.gallery.requests import FILES, Asked, asked
from ldm.gallery.sheets import (
    interpolations,
    write_animation,
    write_frames,
    write_grid,
    write_strip,
)
from ldm.gallery.wishes import MODES, Wish, wishes

__all__ = [
    "FILES",
    "MODES",
    "Asked",
    "Place",
    "Wish",
    "asked",
    "interpolations",
    "plan",
    "progress_bar",
    "read_recipe",
    "wishes",
    "write_animation",
    "write_frames",
    "write_grid",
    "write_manifest",
    "write_picture",
    "write_strip",
]
