"""What all tables of a recipe have in common: a section, and the kinds of values that stand in one."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
PINNED = r"[A-Za-z0-9][\w.-]*==[A-Za-z0-9][\w.+!-]*"
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def all_match(texts: list[str], pattern: str, expected: str) -> list[str]:
    """The texts, which reach a command line: none may be taken for an option there."""
    for text in texts:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"'{text}' is not {expected}")
    return texts


def no_twins(names: list[str]) -> None:
    """Raises ValueError where a name is there twice."""
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ValueError(f"name used twice: {', '.join(twins)}")
