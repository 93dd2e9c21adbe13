"""`herd data curate`: a folder of one's own in; curated documents, a tokenizer and token shards out."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from herd.artifact import CURRENT, Artifact, write_atomically
from herd.console import HerdError, human_bytes, human_count, say
from herd.recipe import Data, Tokenizer
from herd.report_funnel import count, levels, warnings
from herd.run import make_stages
from herd.show_data import funnel_table
from herd.show_data_books import DOCUMENTS, open_books, plain, raw_files
from herd.stage import Stage
from herd.stages_scratch import data_stages

SOURCE_FILE = "source.toml"  # in the run: the folder as a recipe names it
SEED = 0
# Tried in turn until enough documents are held out; the first is the recipe's default. Which documents a share holds
# out follows from their ids, so of a handful none may be before most are: steps of 1%.
HELD_OUT_SHARES = tuple(percent / 100 for percent in range(3, 96))
FEWEST_HELD_OUT = 2  # what sharding asks for
BYTES_A_TOKEN_OF_VOCABULARY = 2_000  # ours: as the laptop recipe's 8 MB for 2,048, a multiple the rarest merges need
VOCABULARIES = (512, 131_072)
TRAIN_BYTES = 30_000_000  # ours: a 32K vocabulary is learned from so much in 18 s
COUNTED_FILES = 100_000
READABLE = "text, Markdown, HTML, source code, jsonl, csv, Parquet or WARC files"


@dataclass(frozen=True)
class Wishes:
    """What may be asked of the verb. `vocabulary` None: from the amount of text."""

    languages: tuple[str, ...] = ("en",)
    min_bytes: int = 20_000
    workers: int | None = None
    engine: str = "local"
    vocabulary: int | None = None
    licence: str = "unstated"


def curate_folder(folder: Path, out: Path | None, wishes: Wishes) -> Path:
    """Curate a folder into a run of its own, go on where an earlier try stopped, and say what came of it.

    Nothing is written into the folder. Raises HerdError where it is none, the run would lie inside it or belongs to
    something else, a wish is out of bounds, or too little text is left: then with what was read and left out.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise HerdError(f"{folder}: no such folder")
    name = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-")[:40] or "folder"
    run = out or Path("runs") / name
    if run.resolve().is_relative_to(root):
        raise HerdError(f"{run} lies inside {folder}, which is only read: give another place with --out")
    data, tokenizer = _sections(name, root, wishes)
    _claim(run, source_table(name, root, wishes.licence))
    command = f"herd data curate {shlex.quote(str(folder))} --out {shlex.quote(str(run))}"

    collect = data_stages(data, tokenizer, SEED, root.parent)[0]
    try:
        sources = make_stages(run, [collect], command)["sources"]
    except HerdError as error:
        raise HerdError(f"{folder}: {error}; it holds {_census(root)}; expected {READABLE}") from None
    facts = sources.json("sources.json")[name]
    curated = _curate(folder, run, data, root.parent, sources, facts, command)
    if wishes.vocabulary is None:
        size = vocabulary_size(curated.json("funnel.json")["kept"]["bytes"])
        tokenizer = tokenizer.model_copy(update={"vocab_size": size})
    done = make_stages(run, data_stages(data, tokenizer, SEED, root.parent)[2:], command)
    _say_what_came(folder, run, facts, done["shards"])
    return run


def source_table(name: str, root: Path, licence: str) -> str:
    """The folder as a `[[data.source]]` of a recipe, in TOML."""
    said = f"licence = {_toml(licence)}\n" if licence != "unstated" else ""
    return f'[[data.source]]\nkind = "folder"\nname = "{name}"\npath = {_toml(str(root))}\n{said}'


def _toml(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)  # a JSON string is a TOML one


def vocabulary_size(text_bytes: int) -> int:
    """Tokens for so much text: a power of two, one token for 2,000 bytes at most, from 512 to 131,072 (ours)."""
    low, high = VOCABULARIES
    return min(high, max(low, 2 ** ((text_bytes // BYTES_A_TOKEN_OF_VOCABULARY).bit_length() - 1)))


def _sections(name: str, root: Path, wishes: Wishes) -> tuple[Data, Tokenizer]:
    """What the wishes mean as tables of a recipe."""
    source = {"kind": "folder", "name": name, "path": root.name, "licence": wishes.licence}
    table = {
        "source": [source],
        "languages": list(wishes.languages),
        "min_bytes": wishes.min_bytes,
        "engine": wishes.engine,
        "workers": wishes.workers,
    }
    vocabulary = {"train_bytes": TRAIN_BYTES} | ({"vocab_size": wishes.vocabulary} if wishes.vocabulary else {})
    if not wishes.languages:
        raise HerdError("--languages: give at least one ISO 639-1 code, such as en,de")
    try:
        return Data.model_validate(table), Tokenizer.model_validate(vocabulary)
    except ValidationError as error:
        first = error.errors()[0]
        option = {"vocab_size": "vocab"}.get(str(first["loc"][-1]), str(first["loc"][-1])).replace("_", "-")
        raise HerdError(f"--{option} {first['input']}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def _claim(run: Path, table: str) -> None:
    """Make the run's folder ours. Raises HerdError where it holds another run."""
    file = run / SOURCE_FILE
    mine = file.is_file() and _path_of(file.read_text(encoding="utf-8")) == _path_of(table)
    if not mine and (file.exists() or (run / CURRENT).exists()):
        raise HerdError(f"{run}: another run is here; choose another place with --out")
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(file, table)


def _path_of(table: str) -> str:
    return next((line for line in table.splitlines() if line.startswith("path = ")), "")


def _curate(
    folder: Path, run: Path, data: Data, base: Path, sources: Artifact, facts: Mapping[str, Any], command: str
) -> Artifact:
    """The curated documents, with enough of them held out."""
    from herd.data.writing import split_of

    def held(ids: list[str], share: float) -> int:
        return sum(split_of(id, SEED, share) == "heldout" for id in ids)

    # Curation drops some, so more raw documents than needed should be held out; of very few, half of what there is.
    ids = [id for file in raw_files(sources) for id in pq.read_table(file, columns=["id"])["id"].to_pylist()]
    enough = min(2 * FEWEST_HELD_OUT, max(FEWEST_HELD_OUT, len(ids) // 4))
    share = next((s for s in HELD_OUT_SHARES if held(ids, s) >= enough), HELD_OUT_SHARES[0])
    for last in (False, True):
        stage = _curate_stage(data.model_copy(update={"held_out_share": share}), base)
        try:
            curated = make_stages(run, [stage], command)["curate"]
        except HerdError as error:
            said = str(error).replace("data.min_bytes", "--min-bytes")
            raise HerdError(f"{folder}: {_was_read(facts)}; {said}") from None
        ids = pq.read_table(curated.file(DOCUMENTS), columns=["id"])["id"].to_pylist()
        if FEWEST_HELD_OUT <= held(ids, share) < len(ids):
            return curated
        fits = next((s for s in HELD_OUT_SHARES if FEWEST_HELD_OUT <= held(ids, s) < len(ids)), None)
        if fits is None or last:
            break
        share = fits
        say(f"of {count(len(ids), 'document')} too few or too many were held out: once more, holding out {share:.0%}")
    raise HerdError(
        f"{folder}: {_was_read(facts)}, {count(len(ids), 'document')} were kept: too few to train on some and hold out "
        f"{FEWEST_HELD_OUT}; see where they went with: herd data inspect --run {shlex.quote(str(run))}"
    )


def _curate_stage(data: Data, base: Path) -> Stage:
    return data_stages(data, Tokenizer(), SEED, base)[1]


def _was_read(facts: Mapping[str, Any]) -> str:
    """What was read and left out, in words."""
    left = ", ".join(f"{n:,} {why}" for why, n in facts["skipped_files"].items())
    said = f"{count(facts['documents'], 'document')} with {human_bytes(facts['bytes'])} were read"
    return f"{said} (left out: {left})" if left else said


def _census(root: Path) -> str:
    """The files of a folder by ending, in words, the commonest first."""
    endings: Counter[str] = Counter()
    for _, _, names in os.walk(root):
        endings.update(Path(name).suffix.lower() or "without an ending" for name in names)
        if endings.total() >= COUNTED_FILES:
            break
    if not endings:
        return "no files"
    named = ", ".join(f"{n:,} {plain(ending, 20)}" for ending, n in endings.most_common(5))
    return f"{count(endings.total(), 'file')} ({named}{', ...' if len(endings) > 5 else ''})"


def _say_what_came(folder: Path, run: Path, facts: Mapping[str, Any], shards: Artifact) -> None:
    books, console = open_books(run), Console(highlight=False)
    counts, tokens = books.funnel["kept"], shards.json("shards.json")
    console.print(Text(f"{plain(str(folder))}: {_was_read(facts)}"))
    console.print()
    console.print(funnel_table(levels(books.funnel), max(12, min(48, console.width - 56)), rules=1))
    for line in warnings(books.funnel):
        console.print(Text(f"! {plain(line)}", "yellow"))
    console.print()
    rows = {
        "documents": f"{books.file(DOCUMENTS)}  ({counts['documents']:,}, {human_bytes(counts['bytes'])})",
        "tokenizer": f"{_folder_of(run, 'tokenizer')}  ({tokens['vocab_size']:,} tokens)",
        "shards": f"{shards.path}  ({human_count(sum(tokens['train_tokens'].values()))} tokens to train on, "
        f"{human_count(tokens['heldout_tokens'])} held out in {count(len(tokens['heldout']), 'document')})",
    }
    for name, value in rows.items():
        console.print(Text.assemble((f"{name:10} ", "bold"), plain(value)), soft_wrap=True)
    where = shlex.quote(str(run))
    console.print()
    console.print(Text(f"look inside: herd data inspect --run {where}"), soft_wrap=True)
    console.print(Text(f"             herd data why PATH --run {where}"), soft_wrap=True)
    console.print(f"in a recipe (also in {plain(str(run / SOURCE_FILE))}):", soft_wrap=True, markup=False)
    for line in (run / SOURCE_FILE).read_text(encoding="utf-8").splitlines():
        console.print(Text(f"    {line}"), soft_wrap=True)


def _folder_of(run: Path, stage: str) -> Path:
    from herd.artifact import published

    return published(run)[stage].path
