"""What changes the outcome of curation: the settings that every pass is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_serializer

from herd.recipe_data import Data
from herd.recipe_section import Section


class CurateSettings(Section):
    """What changes the outcome of curation: `[data]` without its sources and what training does with the outcome.

    `base` is the folder that paths of lists start from; their contents are facts of the stage.
    """

    data: Data
    seed: int
    base: Path = Field(default=Path(), exclude=True)

    @field_serializer("data")
    def _what_matters(self, data: Data) -> dict[str, Any]:
        own = data.model_dump(exclude={"source", "mix", "part_bytes"})
        return own | {"class_caps": data.mix.class_caps}
