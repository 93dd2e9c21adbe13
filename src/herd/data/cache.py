"""Where downloads are kept between runs, and the day each came."""

from __future__ import annotations

import json
import os
from datetime import UTC, date, datetime
from pathlib import Path

from herd.artifact import canonical_json, write_atomically

SIDECAR = "downloaded.json"


def folder(name: str) -> Path:
    """A folder of the user's cache ($XDG_CACHE_HOME, or ~/.cache), made where it isn't there."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "herd" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def note_download(path: Path) -> None:
    """Remember today (UTC) as the day this file was downloaded."""
    days = _days(path.parent)
    days[path.name] = datetime.now(UTC).date().isoformat()
    write_atomically(path.parent / SIDECAR, canonical_json(days, indent=1) + "\n")


def downloaded_on(path: Path) -> date:
    """The day a cached file was downloaded; where nobody noted it, the day it was last changed."""
    day = _days(path.parent).get(path.name)
    return date.fromisoformat(day) if day else datetime.fromtimestamp(path.stat().st_mtime, UTC).date()


def _days(path: Path) -> dict[str, str]:
    try:
        return json.loads((path / SIDECAR).read_text())
    except (OSError, ValueError):
        return {}
