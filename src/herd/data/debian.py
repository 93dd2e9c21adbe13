"""Documentation of Debian packages: downloaded by apt-get, read from the archive without root and without unpacking.

A package that was downloaded once is used again, so that later runs need no network. Nothing is written to disk but
the .deb itself: `dpkg-deb` streams the tar inside it and the wanted members are read from the stream, which leaves no
room for paths or links that lead elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path, PurePosixPath

from herd.data.cache import downloaded_on, folder, note_download
from herd.data.documents import RawDocument
from herd.data.extract import is_text
from herd.data.readers import MAX_FILE_BYTES, Skipped, Unavailable
from herd.recipe_data import DebianPackages

TIMEOUT_SECONDS = 600
MAX_MEMBERS = 500_000
MAX_TOTAL_BYTES = 4_000_000_000  # rust-doc, the largest documentation package, unpacks to 0.6 GB
MAX_COPYRIGHT_BYTES = 2_000_000

# index.html, index.html.en and index.html.ja.utf8 are pages; the last two are how Apache's manual is stored.
_PAGE = re.compile(r"\.html?(\.[a-z]{2}(-[a-z]+)?(\.[a-z0-9-]+)?)?$")
_PLAIN = {".txt": "text", ".md": "markdown", ".rst": "rst"}
_LICENCE = re.compile(r"^License:[ \t]*(\S[^\n]*)$", re.MULTILINE)


def read_debian_packages(source: DebianPackages, skipped: Skipped) -> Iterator[RawDocument]:
    """Pages under usr/share/doc of each package.

    A package that can't be had is counted where the source isn't required and others can. Raises Unavailable where
    none can, or one that is required.
    """
    archives: list[tuple[str, Path]] = []
    reasons: list[str] = []
    apt = Apt(folder("debian"))
    for name in source.packages:
        try:
            archives.append((name, apt.fetch(name)))
        except Unavailable as error:
            reasons.append(str(error))
            skipped[f"package not available: {name}"] += 1
    if reasons and (source.required or not archives):
        raise Unavailable(reasons[0])
    for name, archive in archives:
        yield from read_package(name, archive, downloaded_on(archive), skipped)


class Apt:
    """apt-get as a downloader; remembers the options that worked."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        # "root" here means: don't switch to the user _apt, who can't write into this folder. Needs no root.
        self.options = ["-o", "APT::Sandbox::User=root"]
        self.updated = False

    def fetch(self, name: str) -> Path:
        """The package's archive, from the cache or downloaded now. Raises Unavailable with apt-get's reason."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
            raise Unavailable(f"'{name}' is not the name of a Debian package")
        if (found := self._cached(name)) is not None:
            return found
        for program in ("apt-get", "dpkg-deb"):
            if shutil.which(program) is None:
                raise Unavailable(f"{program} is not on this machine")
        reason = self._run(["download", name])
        if reason and not self.updated:
            self._use_private_lists()
            reason = self._run(["download", name])
        found = self._cached(name)
        if reason or found is None:
            raise Unavailable(f"apt-get can't download '{name}': {reason or 'no file came'}")
        note_download(found)
        return found

    def _cached(self, name: str) -> Path | None:
        return max(self.cache.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime, default=None)

    def _use_private_lists(self) -> None:
        """Fetch package lists into a folder of our own: a machine may have none, and users can't write the system's."""
        self.updated = True
        state = self.cache / "state"
        for part in ("lists/partial", "archives/partial"):
            (state / part).mkdir(parents=True, exist_ok=True)
        private = [f"Dir::State={state}", "Dir::State::status=/var/lib/dpkg/status", f"Dir::Cache={state}"]
        options = [*self.options, *(word for setting in private for word in ("-o", setting))]
        if not self._run(["update"], options):
            self.options = options

    def _run(self, words: list[str], options: list[str] | None = None) -> str:
        """Run apt-get in the cache folder; the empty string, or the reason it failed."""
        command = ["apt-get", "-qq", *(options or self.options), *words]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                command, cwd=self.cache, env=environment, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS, errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"no answer in {TIMEOUT_SECONDS} s"
        except OSError as error:
            return str(error)
        if done.returncode == 0:
            return ""
        lines = [line.removeprefix("E: ") for line in done.stderr.splitlines() if line.startswith("E: ")]
        return lines[0] if lines else f"status {done.returncode}"


def read_package(name: str, archive: Path, day: date, skipped: Skipped) -> Iterator[RawDocument]:
    """Pages of one .deb. A text file beside a page of the same name is its source, and left out.

    Raises Unavailable where the archive is damaged or larger than any documentation is.
    """
    pages: set[str] = set()
    licence = f"see usr/share/doc/{name}/copyright"
    for member, stream in _members(archive):
        if _PAGE.search(member):
            pages.add(_PAGE.sub("", member))
        elif member == f"usr/share/doc/{name}/copyright":
            licence = licence_of_copyright(stream.read(MAX_COPYRIGHT_BYTES).decode("utf-8", "replace")) or licence
    for member, stream in _members(archive):
        media = "html" if _PAGE.search(member) else _PLAIN.get(PurePosixPath(member).suffix)
        if media is None or not member.startswith("usr/share/doc/"):
            continue
        if media != "html" and ("/_sources/" in member or str(PurePosixPath(member).with_suffix("")) in pages):
            skipped["source of a page"] += 1
            continue
        content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            skipped[f"larger than {MAX_FILE_BYTES // 1_000_000} MB"] += 1
        elif not content or not is_text(content, media):
            skipped["not text"] += 1
        else:
            yield RawDocument(member.removeprefix("usr/share/doc/"), "docs", media, licence, day, content)


def _members(archive: Path) -> Iterator[tuple[str, tarfile.ExFileObject]]:
    """Regular files of a .deb in order, as (path without leading ./, stream that is valid until the next one)."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            total = 0
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for count, member in enumerate(tar):
                    total += member.size
                    if count > MAX_MEMBERS or total > MAX_TOTAL_BYTES:
                        raise Unavailable(f"{archive.name}: unpacks to more than documentation ever does")
                    stream = tar.extractfile(member) if member.isreg() else None
                    if stream is not None:
                        yield member.name.removeprefix("./"), stream  # type: ignore[misc]
        except (tarfile.TarError, EOFError) as error:
            raise Unavailable(f"{archive.name}: damaged ({error}); delete it from {archive.parent}") from None
        finally:
            process.kill()


def licence_of_copyright(text: str) -> str:
    """Licences that a DEP-5 copyright file names, the three most common joined; empty where it names none."""
    counts = Counter(name.strip() for name in _LICENCE.findall(text) if len(name) <= 60)
    return " AND ".join(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3])
