"""`herd prove`: measure a claim of the ledger again and compare.

The stage that made the claim's newest entry runs once more, on the published inputs that the entry's artifact names,
in a folder of its own that is deleted afterwards: nothing of the run is touched, and nothing is written to its ledger.
"""

from __future__ import annotations

import difflib
import json
import shlex
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from herd.artifact import MANIFEST, RECORDED, Artifact, canonical_json, open_artifact, read_current
from herd.console import HerdError, say
from herd.evidence import CLAIMS, Claim, Entry, Ledger, claims_of
from herd.recipe import ExportForm, Recipe, load_recipe
from herd.report_reading import exact
from herd.run import execute, export_stage, quantize_stage
from herd.stages import Stage, stages

CLOSE = 6  # ids offered for one that is not there
SHOWN = 6  # files that are not the same
READ_OWN_FILES = ("sources", "questions")  # stages that read the user's own files
OWN_FILES = ("folder", "own-tables", "own-chats")  # kinds of source that are such files


@dataclass(frozen=True)
class Comparison:
    """A claim as it was recorded and as it came out again, with the content hashes of both artifacts.

    timing: the claim is a speed or a time, kept under `recorded/`, which two honest runs do not share. differing:
    names of the files whose content is not the same.
    """

    recorded: Claim
    again: Claim
    recorded_content: str
    content: str
    timing: bool = False
    differing: tuple[str, ...] = ()

    @property
    def inside(self) -> bool:
        """Whether the new value lies in the interval of the recorded one."""
        low, high = self.recorded.low, self.recorded.high
        return low is not None and high is not None and low <= self.again.value <= high

    @property
    def verdict(self) -> str:
        """One line."""
        if self.again.value == self.recorded.value:
            return "same value, same content" if self.content == self.recorded_content else "same value"
        by = f"differs by {self.again.value - self.recorded.value:+.6g}"
        if self.timing:
            return f"{by}: a timing, which is not compared"
        if self.recorded.low is None or self.recorded.high is None:
            return f"{by}: outside, for it was recorded without an interval"
        return f"{by}: {'inside' if self.inside else 'outside'} the interval"

    @property
    def holds(self) -> bool:
        return self.again.value == self.recorded.value or self.inside or self.timing


def prove(run: Path, id: str) -> int:
    """Measure a claim again and print the comparison; returns the exit status, 0 where the claim holds.

    Raises HerdError for an unknown claim, and where what made it, or what it was made from, is no longer there.
    """
    comparison = measure_again(run, id)
    console = Console(highlight=False)
    console.print(f"{id}: {comparison.recorded.what}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("", "value", "interval", "n", "content"):
        table.add_column(column)
    for title, claim, content in (
        ("recorded", comparison.recorded, comparison.recorded_content),
        ("again", comparison.again, comparison.content),
    ):
        table.add_row(
            title, f"{exact(claim.value)} {claim.unit}", interval(claim), f"{claim.n:,} {claim.of}", content[:12]
        )
    console.print(table)
    if others := comparison.differing:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        console.print(f"not the same: {', '.join(others[:SHOWN])}{more}", markup=False, soft_wrap=True)
    console.print(comparison.verdict, markup=False)
    return 0 if comparison.holds else 1


def measure_again(run: Path, id: str) -> Comparison:
    """Run the stage that made a claim once more, in a temporary folder inside the run. Raises as `prove` does."""
    entry = find_entry(run, id)
    artifact = _artifact(run, entry)
    recipe, base = _recipe(run, entry)
    stage = _stage(run, recipe, base, artifact, entry)
    inputs = _inputs(run, stage, artifact, entry)
    _compare_settings(run, stage, inputs, artifact, base)
    say(f"{id}: running {stage.name} again, beside the run")
    from herd.train.workers import set_threads

    set_threads(recipe.compute.threads)
    with tempfile.TemporaryDirectory(prefix=".proof-", dir=run) as folder:
        again = open_artifact(execute(stage, inputs, Path(folder), f"herd prove --claim {id}"))
        found = {claim.id: claim for claim in claims_of(again)}
        if id not in found:
            raise HerdError(f"{id}: stage {stage.name} of this version of herd does not make this claim")
        contents, timing = (artifact.content, again.content), _is_timing(artifact, id)
        return Comparison(entry.claim, found[id], *contents, timing, _differing(artifact, again))


def find_entry(run: Path, id: str) -> Entry:
    """The newest entry of a claim. Raises HerdError naming ids that are close."""
    entries = Ledger(run).latest()
    if id in entries:
        return entries[id]
    parts = id.split(".")
    shared = [other for other in entries if set(parts) <= set(other.split("."))]
    close = list(dict.fromkeys([*difflib.get_close_matches(id, entries, CLOSE), *shared]))[:CLOSE]
    there = f"; close to it: {', '.join(close)}" if close else "; `herd prove` without --claim lists all"
    raise HerdError(f"{run}: no claim '{id}' in the ledger{there}")


def _artifact(run: Path, entry: Entry) -> Artifact:
    path = run / entry.artifact
    if not (path / MANIFEST).is_file():
        raise HerdError(
            f"{path}: the artifact that made {entry.claim.id} was deleted since; to make it: {entry.command}"
        )
    artifact = open_artifact(path)
    if artifact.content != entry.content:
        raise HerdError(f"{path}: holds another content than the ledger says of {entry.claim.id}; was it replaced?")
    return artifact


def _recipe(run: Path, entry: Entry) -> tuple[Recipe, Path]:
    """The run's recipe and the folder its relative paths start from: where the file lay, if it still lies there."""
    copy = run / "recipe.toml"
    words = shlex.split(entry.command)
    source = Path(words[2]) if len(words) > 2 else copy
    same = source.is_file() and copy.is_file() and source.read_bytes() == copy.read_bytes()
    return load_recipe(copy), (source.parent if same else run)


def _stage(run: Path, recipe: Recipe, base: Path, artifact: Artifact, entry: Entry) -> Stage:
    try:
        plan = stages(recipe, base)
    except HerdError as error:
        if artifact.stage in READ_OWN_FILES:
            raise HerdError(f"{error}; {_lost_files(run, base)}") from None
        plan = stages(_without_own_files(recipe), base)  # what comes after those stages needs their artifacts only
    for stage in plan:
        if stage.name == artifact.stage:
            return stage
    if (form := _exported_form(artifact)) is not None:
        return export_stage(run, artifact.manifest["asked"]["settings"]["member"], form)
    asked = artifact.manifest["asked"]["settings"]
    if artifact.stage == f"quantize-{asked.get('scheme')}-{asked.get('member')}":
        return quantize_stage(run, asked["member"], asked["scheme"])
    raise HerdError(f"{run / 'recipe.toml'}: no stage {artifact.stage} any more, which made {entry.claim.id}")


def _exported_form(artifact: Artifact) -> ExportForm | None:
    """The format that `herd export` made an artifact in; None for one of the plan's stages."""
    forms = artifact.manifest["asked"]["settings"].get("formats", [])
    member = artifact.manifest["asked"]["settings"].get("member")
    return next((form for form in forms if artifact.stage == f"export-{form}-{member}"), None)


def _without_own_files(recipe: Recipe) -> Recipe:
    """A recipe whose plan can be made where the user's own files are gone."""
    changes: dict[str, Any] = {}
    for name in ("data", "posttrain"):
        if (section := getattr(recipe, name)) is not None:
            kept = [source for source in section.source if source.kind not in OWN_FILES]
            changes[name] = section.model_copy(update={"source": kept})
    return recipe.model_copy(update=changes)


def _lost_files(run: Path, base: Path) -> str:
    where = f"{base}" if base != run else f"{run}, for the recipe file that the run was made with is not where it was"
    return f"relative paths of the recipe were looked for in {where}"


def _inputs(run: Path, stage: Stage, artifact: Artifact, entry: Entry) -> dict[str, Artifact]:
    """The artifacts of the run with the contents that the stage was given then, newest first where several have it."""
    wanted: dict[str, str] = artifact.manifest["asked"]["inputs"]
    if set(wanted) != set(stage.inputs):
        raise HerdError(
            f"{stage.name}: this version of herd makes it from {', '.join(stage.inputs)}, not as it was then"
        )
    newest = set(read_current(run).values())
    folders = sorted(run.glob(f"*/{MANIFEST}"), key=lambda path: path.parent.name in newest)
    known: dict[str, Artifact] = {}
    for path in folders:
        with suppress(HerdError):  # a damaged artifact is of no use here, whatever it is
            found = open_artifact(path.parent)
            known[found.content] = found
    for name, content in wanted.items():
        if content not in known:
            raise HerdError(
                f"{entry.claim.id}: its input '{name}' (content {content[:12]}) is no longer whole in {run}; "
                f"to make it: {_before(entry.command, stage.inputs[name])}"
            )
    return {name: known[content] for name, content in wanted.items()}


def _before(command: str, stage: str) -> str:
    """The command that brings about another stage of the same run."""
    words = shlex.split(command)
    out = words[words.index("--out") :][:2] if "--out" in words else []
    return shlex.join([*words[:3], "--until", stage, *out])


def _compare_settings(run: Path, stage: Stage, inputs: dict[str, Artifact], artifact: Artifact, base: Path) -> None:
    """Another machine is said; other settings or files are another claim, and an error."""
    then, now = artifact.manifest["asked"], json.loads(canonical_json(stage.asked(inputs)))
    old, new = dict(then["settings"]), dict(now["settings"])
    if old.pop("hardware", None) != new.pop("hardware", None):
        was, is_ = then["settings"].get("hardware"), now["settings"].get("hardware")
        say(f"on other hardware than then: {_words(was)}; now {_words(is_)}")
    if old.pop("facts", None) != new.pop("facts", None):
        raise HerdError(
            f"{stage.name}: the files it reads besides its inputs are not those it read then; {_lost_files(run, base)}"
        )
    if changed := sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)):
        raise HerdError(
            f"{run / 'recipe.toml'}: {stage.name} was made with other settings than the recipe has now "
            f"({', '.join(changed)}); run the recipe again first"
        )
    if then["version"] != now["version"]:
        say(f"{stage.name} was version {then['version']} then, now {now['version']}")


def _differing(first: Artifact, second: Artifact) -> tuple[str, ...]:
    """Names of files that are in one artifact only or have another content; `recorded/` is not content."""
    files = [{n: e.get("identity", e["sha256"]) for n, e in a.manifest["files"].items()} for a in (first, second)]
    names = sorted(name for name in files[0] | files[1] if not name.startswith(f"{RECORDED}/"))
    return tuple(name for name in names if files[0].get(name) != files[1].get(name))


def _words(hardware: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in hardware.items()) if hardware else "not recorded"


def _is_timing(artifact: Artifact, id: str) -> bool:
    name = f"{RECORDED}/{CLAIMS}"
    return name in artifact.manifest["files"] and any(row["id"] == id for row in artifact.json(name))


def print_claims(run: Path) -> None:
    """Every claim of the ledger: id, value, interval."""
    table = Table(box=None, pad_edge=False)
    table.add_column("claim", overflow="fold")
    for column in ("value", "interval"):
        table.add_column(column, no_wrap=True)
    for id, entry in sorted(Ledger(run).latest().items()):
        table.add_row(id, f"{exact(entry.claim.value)} {entry.claim.unit}", interval(entry.claim))
    console = Console(highlight=False)
    console.print(f"{run}", markup=False, soft_wrap=True)
    console.print(table)


def interval(claim: Claim) -> str:
    """An interval as people write it, empty where the claim has none."""
    if claim.low is None or claim.high is None:
        return ""
    return f"{exact(claim.low)} to {exact(claim.high)}" + (f" at {claim.confidence:.0%}" if claim.confidence else "")
