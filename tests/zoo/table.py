"""All lines of the zoo."""

from __future__ import annotations

from . import plain, table_encoders, table_held, table_libraries, table_more, table_text, table_timm
from .entry import Entry, read

ENTRIES: list[Entry] = [
    *read("plain", plain.TABLE),
    *read("transformers", table_text.TABLE),
    *read("transformers", table_encoders.TABLE),
    *read("transformers", table_more.TABLE),
    *read("transformers", table_held.TRANSFORMERS),
    *read("timm", table_timm.TABLE),
    *read("timm", table_held.TIMM),
    *read("diffusers", table_libraries.DIFFUSERS),
    *read("monai", table_libraries.MONAI),
    *read("x-transformers", table_libraries.X_TRANSFORMERS),
    *read("vit-pytorch", table_libraries.VIT_PYTORCH),
    *read("open_clip", table_libraries.OPEN_CLIP),
]
BY_NAME = {e.name: e for e in ENTRIES}
assert len(BY_NAME) == len(ENTRIES), "two lines of one name"
