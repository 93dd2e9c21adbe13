"""Archives of packages, downloaded once into the cache: nothing is installed, nor anything that they depend on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from herd.artifact import file_sha256
from herd.console import HerdError
from herd.data.cache import note_download
from herd.data.files import Unavailable

TIMEOUT_SECONDS = 300


def check_digest(archive: Path, sha256: str | None) -> None:
    """Raises HerdError where the archive's SHA-256 is not the one expected. Without expectation there's no check."""
    if sha256 and (found := file_sha256(archive)) != sha256:
        raise HerdError(f"{archive}: its SHA-256 is {found}, the recipe expects {sha256}; not opened")


def fetch_package(package: str, sha256: str | None, cache: Path) -> Path:
    """Archive of NAME==VERSION, from the cache or downloaded by pip. Raises Unavailable with pip's reason.

    pip runs the setup of a source archive to learn its name, so one is only asked for where its digest is pinned.
    """
    if (found := _cached(package, cache)) is not None:
        return found
    if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", package):
        raise Unavailable(f"'{package}' is not NAME==VERSION")
    with tempfile.TemporaryDirectory(dir=cache) as asked, tempfile.TemporaryDirectory(dir=cache) as work:
        requirement = Path(asked) / "requirements.txt"
        requirement.write_text(f"{package} --hash=sha256:{sha256}\n" if sha256 else f"{package}\n")
        how = ["--require-hashes"] if sha256 else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", *how]
        command += ["--dest", work, "--requirement", str(requirement)]
        archive, said = _download(command, Path(work), f"pip can't download {package}")
        if archive is None:
            errors = [line.removeprefix("ERROR: ") for line in said if "ERROR" in line or "No module" in line]
            raise Unavailable(f"pip can't download {package}: {next(iter(errors), said[-1])}")
        return _keep(archive, cache / archive.name)


def _cached(package: str, cache: Path) -> Path | None:
    name, version = package.split("==")
    plain = re.sub(r"[-_.]+", "_", name).lower()
    for path in sorted(cache.iterdir()):
        found = re.match(r"(.+?)-(" + re.escape(version) + r")(-.*\.whl|\.tar\.gz|\.zip|\.tgz)$", path.name)
        if found and re.sub(r"[-_.]+", "_", found[1]).lower() == plain:
            return path
    return None


def fetch_npm(name: str, version: str, cache: Path) -> Path:
    """Archive of a package of npm, from the cache or downloaded by `npm pack`, which runs nothing of it.

    Raises Unavailable with npm's reason.
    """
    final = cache / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if final.exists():
        return final
    if (npm := shutil.which("npm")) is None:
        raise Unavailable(f"npm is not installed; install it, or put the archive at {final}")
    with tempfile.TemporaryDirectory(dir=cache) as work:
        command = [npm, "pack", "--loglevel=error", "--ignore-scripts", "--pack-destination", work, f"{name}@{version}"]
        archive, said = _download(command, Path(work), "npm can't download it", cwd=Path(work))
        if archive is None:
            errors = [line.split(" ", 2)[-1] for line in said if line.startswith("npm ")]
            reason = next((line for line in errors if not line.startswith("code ")), said[-1])
            raise Unavailable(f"npm can't download it: {reason}")
        return _keep(archive, final)


def _download(
    command: Sequence[str], work: Path, failed: str, cwd: Path | None = None
) -> tuple[Path | None, list[str]]:
    """The one file that a command leaves in `work`, else None, and what it said, the last line being its status."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{failed}: no answer in {TIMEOUT_SECONDS} s") from None
    came = list(work.iterdir())
    said = [*done.stderr.splitlines(), f"status {done.returncode}"]
    return (None if done.returncode or len(came) != 1 else came[0]), said


def _keep(archive: Path, final: Path) -> Path:
    archive.replace(final)
    note_download(final)
    return final
