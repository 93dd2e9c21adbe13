"""Code and READMEs of the Python that runs herd: a corpus that is on every machine.

The standard library is named by its paths inside the library folder, an installed distribution by the paths that its
own record lists. Tests are left out (walls of expected values), and so are idlelib, lib2to3 and the tables of
`encodings`.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from herd.data.documents import RawDocument
from herd.data.readers import Skipped, Unavailable, read_file, walk_files
from herd.recipe_data import PythonInstallation

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "dist-packages", "_pytest"}
PSF_LICENCE = "PSF-2.0"
README_MEDIA = {"text/markdown": "markdown", "text/x-rst": "rst"}


def read_python_installation(source: PythonInstallation, skipped: Skipped) -> Iterator[RawDocument]:
    """Documents of the standard library and of the named distributions.

    A distribution that isn't installed is counted where the source isn't required. Raises Unavailable naming it
    where it is.
    """
    if source.standard_library:
        yield from _standard_library(source.modules, skipped)
    for name in source.packages:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if source.required:
                raise Unavailable(f"the package '{name}' is not installed in this Python") from None
            skipped[f"package not installed: {name}"] += 1
            continue
        yield from _distribution(distribution, skipped)


def installation_facts(source: PythonInstallation) -> dict[str, Any]:
    """Versions that decide what would be read: of Python and of the named distributions (None: not installed)."""
    versions: dict[str, str | None] = {}
    for name in source.packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {"python": platform.python_version() if source.standard_library else None, "packages": versions}


def _standard_library(modules: list[str], skipped: Skipped) -> Iterator[RawDocument]:
    root = Path(sysconfig.get_paths()["stdlib"])
    wanted, seen = set(modules), set()
    for path, inside in walk_files(root, skipped):
        parts = PurePosixPath(inside).parts
        top = parts[0].removesuffix(".py")
        if path.suffix != ".py" or _left_out(parts) or (wanted and top not in wanted):
            continue
        seen.add(top)
        if found := read_file(path, "python", skipped):
            yield RawDocument(inside, "code", "python", PSF_LICENCE, found[1], found[0])
    for name in sorted(wanted - seen):
        skipped[f"no such module in this Python: {name}"] += 1


def _left_out(parts: tuple[str, ...]) -> bool:
    # _sysconfigdata_*.py holds the paths and compiler flags of the machine that built this Python.
    return bool(LEFT_OUT.intersection(parts)) or parts[-1].startswith(("_sysconfigdata", "test_"))


def _distribution(distribution: metadata.Distribution, skipped: Skipped) -> Iterator[RawDocument]:
    name, licence = distribution.name, licence_of(distribution.metadata)
    for file in sorted(distribution.files or [], key=str):
        if file.suffix != ".py" or ".." in file.parts or file.is_absolute() or _left_out(file.parts):
            continue
        path = Path(str(distribution.locate_file(file)))
        if path.is_symlink():
            skipped["symbolic link"] += 1
        elif found := read_file(path, "python", skipped):
            yield RawDocument(file.as_posix(), "code", "python", licence, found[1], found[0])
    fields: Any = distribution.metadata
    text = fields.get("Description") or fields.get_payload()
    if isinstance(text, str) and text.strip() not in ("", "UNKNOWN"):
        media = README_MEDIA.get((fields.get("Description-Content-Type") or "").split(";")[0].strip().lower(), "rst")
        yield RawDocument(f"{name}/README", "docs", media, licence, _installed(distribution), text.encode())


def _installed(distribution: metadata.Distribution) -> Any:
    for file in distribution.files or []:
        if file.name == "METADATA":
            changed = Path(str(distribution.locate_file(file))).stat().st_mtime
            return datetime.fromtimestamp(changed, UTC).date()
    return datetime.now(UTC).date()


def licence_of(fields: Any) -> str:
    """Licence named by a package's metadata: License-Expression, a one-line License, or the classifiers."""
    expression, free = fields.get("License-Expression"), (fields.get("License") or "").strip()
    if expression:
        return expression
    # Some packages put the whole licence text here; the first line of it says nothing reliable.
    if free and free != "UNKNOWN" and "\n" not in free and len(free) <= 100:
        return free
    classifiers = [c.split(" :: ")[-1] for c in fields.get_all("Classifier") or [] if c.startswith("License :: ")]
    return " AND ".join(classifiers) or "unstated"
