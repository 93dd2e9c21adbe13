"""The page that a run leaves behind: `report.html`, one file, no scripts, nothing loaded from elsewhere.

Every number on it links to the row of its claim in the ledger, or to the file it was read from. Paths of documents
and other text of the corpus are foreign, so the template escapes everything that is not markup of our own.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from herd import __version__
from herd.artifact import CURRENT, write_atomically
from herd.console import HerdError
from herd.evidence import LEDGER
from herd.report_reading import read_run

PAGE = "report.html"
TEMPLATE = "report.html.jinja"
_BUILT_FROM = re.compile(r'<meta name="herd-built-from" content="([0-9a-f]{64})">')


def write_report(run: Path, anew: bool = False) -> Path:
    """Build a run's page and return its path; a page that is up to date is left alone unless `anew`.

    Raises HerdError where the folder is no run, or an artifact that it names is damaged.
    """
    page, made_from = run / PAGE, fingerprint(run)
    if anew or _built_from(page) != made_from:
        write_atomically(page, render(run, made_from))
    return page


def fingerprint(run: Path) -> str:
    """Hash of what the page is made from: the artifacts of the run, its ledger and recipe, and the version of herd."""
    digest = hashlib.sha256(__version__.encode())
    for name in (CURRENT, LEDGER, "recipe.toml"):
        path = run / name
        digest.update(f"\0{name}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def render(run: Path, made_from: str) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from herd.report_sections import sections

    if not (run / CURRENT).is_file():
        raise HerdError(f"{run}: no run of herd here ({CURRENT} is missing)")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        fingerprint=made_from, version=__version__, **sections(read_run(run))
    )


def _built_from(page: Path) -> str | None:
    """The fingerprint in a page's head, or None where there is no page of ours."""
    try:
        with page.open(encoding="utf-8", errors="replace") as stream:
            found = _BUILT_FROM.search(stream.read(2000))
    except FileNotFoundError:
        return None
    return found[1] if found else None
