"""Numbers out of a config that somebody else wrote: of the right kind and size, or an error that names the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.console import HerdError

# Above all Llamas, and small enough that a forged config can't make us build for hours
MOST_LAYERS, MOST_HEADS, WIDEST, WIDEST_FFN = 1_000, 4_096, 100_000, 1_000_000
LONGEST_CONTEXT, MOST_TOKENS = 2**21, 2**21
LONGEST_LINE = 300  # characters of an error about a file


class Numbers:
    """Values by key; `where` begins every error, a file or the beginning of its keys."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def whole(self, key: str, most: int, default: int | None = None) -> int:
        """A whole number from 1 to `most`. Raises HerdError for anything else, and where it is missing undefaulted."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise HerdError(f"{self.where}{key} is {shown(value)}; expected a whole number from 1 to {most}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number above 0 and below 1e12. Raises HerdError as `whole` does."""
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
            raise HerdError(f"{self.where}{key} is {shown(value)}; expected a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false. Raises HerdError for anything else."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise HerdError(f"{self.where}{key} is {shown(value)}; expected true or false")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def shown(value: Any) -> str:
    """A value as it may stand in an error."""
    try:
        return repr(value)[:60]
    except ValueError:  # a whole number of over 4,300 digits
        return "a huge number"


def plain(text: str) -> str:
    """Text that holds names out of a file, as one line: what can't be printed escaped, and an end to it."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]} ..."
