"""A stage's output: a folder with a manifest, published whole or not at all.

A stage writes into a draft folder. When it is done, every file is hashed and flushed to disk, `manifest.json` (the
marker: an artifact without it does not count) is written last, and the folder is renamed to its final name. A
process killed at any moment leaves either the finished artifact or a draft that the next run deletes.

An artifact has two hashes. Its *key* says what was asked for: stage, stage version, the settings that change its
content, and the content hashes of its inputs. Its *content* says what came out: the digests of its files. Files under
`recorded/` (timings, machine facts) are kept and checked, but two honest runs differ there, so they are not content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.console import HerdError

SCHEMA = 1
MANIFEST = "manifest.json"
RECORDED = "recorded"
DRAFTS = ".drafts"
CURRENT = "current.json"


@dataclass(frozen=True)
class Artifact:
    """A published artifact: where it is and what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def content(self) -> str:
        return self.manifest["content"]

    def file(self, name: str) -> Path:
        """Path of one of its files. Raises HerdError where the manifest lists no such file."""
        if name not in self.manifest["files"]:
            raise HerdError(f"{self.path}: no file '{name}' in the manifest of stage {self.stage}")
        return self.path / name

    def json(self, name: str) -> Any:
        """One of its JSON files, parsed."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    def json_lines(self, name: str) -> list[Any]:
        """The rows of one of its JSONL files. Texts in them may hold what str.splitlines takes for line ends."""
        return [json.loads(line) for line in self.file(name).read_text(encoding="utf-8").split("\n") if line]


@dataclass
class Draft:
    """An artifact being written. `folder` is where its files go; `recorded` is for what is not hashed."""

    folder: Path
    work: Path  # survives a kill: checkpoints and finished parts of a long stage; deleted once published
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def recorded(self) -> Path:
        path = self.folder / RECORDED
        path.mkdir(exist_ok=True)
        return path

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, creating folders as needed."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(canonical_json(value, indent=1) + "\n", encoding="utf-8")

    def identify(self, name: str, digest: str) -> None:
        """Let `digest` stand for file `name` in the content hash.

        For files whose bytes hold facts that differ between equal runs, such as the date a document was fetched.
        """
        self.digests[name] = digest


def canonical_json(value: Any, indent: int | None = None) -> str:
    """JSON with sorted keys, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=indent, allow_nan=False)


def stage_key(stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hash of what an artifact is asked to be; `inputs` maps input names to their content hashes."""
    asked = {"stage": stage, "version": version, "settings": settings, "inputs": inputs, "schema": SCHEMA}
    return hashlib.sha256(canonical_json(asked).encode()).hexdigest()


def folder_name(stage: str, key: str) -> str:
    """Final name of an artifact's folder inside its run."""
    return f"{stage}-{key[:12]}"


def find(run: Path, stage: str, key: str) -> Artifact | None:
    """The published artifact with this key, or None."""
    path = run / folder_name(stage, key)
    if not (path / MANIFEST).is_file():
        return None
    artifact = open_artifact(path)
    return artifact if artifact.key == key else None


def open_artifact(path: Path) -> Artifact:
    """Open a published artifact; checks that every listed file is there with its size.

    Raises HerdError naming the file where the marker is missing or unreadable, or a file is missing or cut short.
    """
    marker = path / MANIFEST
    try:
        manifest = json.loads(marker.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HerdError(f"{path}: not a finished artifact, {MANIFEST} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HerdError(f"{marker}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict) or not {"stage", "key", "content", "files"} <= manifest.keys():
        raise HerdError(f"{marker}: not the manifest of an artifact")
    if manifest.get("schema") != SCHEMA:
        raise HerdError(f"{marker}: schema {manifest.get('schema')}, this version of herd reads {SCHEMA}")
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise HerdError(
                f"{file}: missing or not {entry['bytes']} bytes long; make it anew with --force {manifest['stage']}"
            )
    return Artifact(path, manifest)


def verify(artifact: Artifact) -> list[str]:
    """Names of the files whose bytes no longer match the manifest (empty: all is well)."""
    files = artifact.manifest["files"]
    return [name for name, entry in files.items() if file_sha256(artifact.path / name) != entry["sha256"]]


@contextlib.contextmanager
def publish(
    run: Path,
    stage: str,
    key: str,
    asked: Mapping[str, Any],
    recorded: Mapping[str, Any],
) -> Iterator[Draft]:
    """Write an artifact: yields a draft, publishes it when the block ends, removes it when the block fails.

    `asked` (what the key hashes) and `recorded` (date, machine, command) go into the manifest. The draft's `work`
    folder is named by the key and kept on failure, so that a long stage can go on where it stopped.
    """
    final = run / folder_name(stage, key)
    draft = Draft(run / DRAFTS / f"{final.name}.{os.getpid()}", _work_folder(run, final.name))
    shutil.rmtree(draft.folder, ignore_errors=True)
    draft.folder.mkdir(parents=True)
    draft.work.mkdir(exist_ok=True)
    try:
        yield draft
        _seal(draft, stage, key, asked, recorded)
        if final.exists():  # without its marker it counts for nothing, also when we are killed while deleting it
            (final / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(final)
        draft.folder.rename(final)
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise
    _flush_folder(run)
    shutil.rmtree(draft.work, ignore_errors=True)


def forget_unfinished(run: Path, stage: str, key: str) -> None:
    """Delete what a killed stage left to go on from, so that it begins anew."""
    shutil.rmtree(_work_folder(run, folder_name(stage, key)), ignore_errors=True)


def _work_folder(run: Path, name: str) -> Path:
    return run / DRAFTS / f"{name}.work"


def _seal(draft: Draft, stage: str, key: str, asked: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    if strangers := [name for name in draft.digests if not (draft.folder / name).is_file()]:
        raise ValueError(f"stage {stage} identifies files it has not written: {strangers}")
    files: dict[str, dict[str, Any]] = {}
    identity = hashlib.sha256()
    for path in sorted(p for p in draft.folder.rglob("*") if p.is_file()):
        name = path.relative_to(draft.folder).as_posix()
        digest = file_sha256(path)
        files[name] = {"sha256": digest, "bytes": path.stat().st_size}
        if name in draft.digests:
            files[name]["identity"] = draft.digests[name]
        if not name.startswith(RECORDED + "/"):
            identity.update(f"{name}\0{draft.digests.get(name, digest)}\n".encode())
        _flush_file(path)
    manifest = {
        "schema": SCHEMA,
        "stage": stage,
        "key": key,
        "content": identity.hexdigest(),
        "asked": asked,
        "files": files,
        "recorded": recorded,
    }
    write_atomically(draft.folder / MANIFEST, canonical_json(manifest, indent=1) + "\n")
    for folder in (draft.folder, *(p for p in draft.folder.rglob("*") if p.is_dir())):
        _flush_folder(folder)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a small file so that readers see the old or the new bytes, never a part; flushed to disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_current(run: Path) -> dict[str, str]:
    """Folder names of a run's newest artifacts by stage; empty where nothing was published yet."""
    try:
        return json.loads((run / CURRENT).read_text(encoding="utf-8"))["artifacts"]
    except FileNotFoundError:
        return {}


def write_current(run: Path, stage: str, folder: str) -> None:
    """Note that `folder` now holds a stage's newest artifact."""
    artifacts = read_current(run)
    if artifacts.get(stage) != folder:
        current = {"schema": SCHEMA, "artifacts": artifacts | {stage: folder}}
        write_atomically(run / CURRENT, canonical_json(current, indent=1) + "\n")


def published(run: Path) -> dict[str, Artifact]:
    """The newest artifacts of a run by stage name."""
    return {stage: open_artifact(run / folder) for stage, folder in read_current(run).items()}


def clean_drafts(run: Path) -> None:
    """Delete what killed processes left half-written. Only for the holder of the run's lock."""
    for path in (run / DRAFTS).glob("*"):
        if re.fullmatch(r".+\.\d+", path.name):
            shutil.rmtree(path, ignore_errors=True)


def _flush_file(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
