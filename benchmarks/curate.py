"""Curation beside datatrove 0.10 and trafilatura, on a WARC of real documentation pages with labelled near-duplicates.

    python benchmarks/curate.py [--picture scaling.png] [--rounds 3] [--quick]

The corpus (curation/corpus.py) is built from Debian packages on the first run, so apt-get must work; datatrove gets a
virtual environment of its own. All speeds are CPU seconds of a process and its children without imports, one worker;
before a chain is measured it runs over ten other records, so that models and lists are loaded. Sides are interleaved,
medians taken; a ratio is the median over rounds.

- chain: WARC to de-duplicated documents over the first 500 records. Ours has all rules on, personal data, language,
  URL, exact, near and line de-duplication; theirs is in curation/datatrove_chain.py. Both write what they keep.
- extract: HTML to text over 400 of the pages, and what each keeps of code, maths, paragraphs and navigation.
- minhash: from text to signatures, on our texts of those 500 records; recall and false merges of the whole chain over
  all records against exact similarities; and a million short documents.
- scaling: an eighth, a quarter, half and all of the WARC, by one and by two workers.

--quick takes a tenth of everything: a try, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from curation import extraction, minhash, scaling
from curation.corpus import Corpus, contents, corpus, first_records
from peers import PEERS, machine

HERE = Path(__file__).parent / "curation"
DATATROVE = [
    "datatrove[io,processing]==0.10.1", "xxhash<4", "spacy>=3.8", "faust-cchardet", "python-magic", "lxml_html_clean"
]  # fmt: skip
RECORDS, WARM, PAGES = 500, 10, 400
Figures = dict[str, float]


class Sizes(NamedTuple):
    """How much is measured: all, or a tenth of it."""

    records: int
    pages: int
    short: int
    rounds: int


class Outcome(NamedTuple):
    figures: Figures
    ratios: Figures


TARGETS = (  # name of a figure or ratio, what is asked, and whether less is better
    ("chain/datatrove", 15, False),
    ("chain-mb-s", 8, False),
    ("extract/trafilatura", 15, False),
    ("extract.code-lines", 1.0, False),
    ("extract.indentation", 1.0, False),
    ("extract.maths", 0.99, False),
    ("extract.paragraphs", 0.98, False),
    ("extract.navigation-leaked", 0.10, True),
    ("minhash/datatrove", 20, False),
    ("minhash.recall", 0.99, False),
    ("minhash.false-merges", 0.001, True),
    ("dedup-1m-cpu-s", 30, True),
    ("dedup-1m-rss-gb", 1, True),
)
SHARES = ("extract.", "minhash.")  # what is a share among the targets


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--picture", type=Path, help="where to draw time and memory over size (PNG)")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--quick", action="store_true")
    chosen = options.parse_args()
    part = 10 if chosen.quick else 1
    sizes = Sizes(RECORDS // part, PAGES // part, minhash.SHORT_DOCUMENTS // part, 1 if chosen.quick else chosen.rounds)
    found = documentation(chosen.quick)
    peer = datatrove()
    outcome = Outcome({}, {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for measure in (chain, extract, signatures, quality, million):
            (folder / measure.__name__).mkdir()
            made = measure(found, peer, sizes, folder / measure.__name__)
            outcome.figures.update(made.figures)
            outcome.ratios.update(made.ratios)
        grown = scaling.grow(found, folder / "scaling")
    for workers, points in grown.items():
        for size, one in points:
            for figure in ("cpu-s", "wall-s", "peak-gb"):
                outcome.figures[f"scaling.{size:.0f}-mb.{workers}-workers.{figure}"] = one[figure]
    if chosen.picture:
        scaling.draw(grown, chosen.picture)
    report(outcome)


def documentation(quick: bool) -> Corpus:
    """The corpus, or the end of the program with the reason why it can't be had."""
    from herd.data.readers import Unavailable

    try:
        return corpus(quick)
    except Unavailable as error:
        raise SystemExit(
            f"benchmarks/curate.py builds its corpus from Debian packages, which failed: {error}"
        ) from None


def datatrove() -> Path:
    """Python of datatrove's own environment, made on the first call; it needs no torch, so none is installed."""
    python = PEERS / "datatrove" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS / "datatrove")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *DATATROVE], check=True)
    return python


def side(python: Path, script: str, *words: Any) -> Figures:
    """The JSON line that a script prints at its end."""
    command = [str(python), str(HERE / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def chain(found: Corpus, peer: Path, sizes: Sizes, folder: Path) -> Outcome:
    warc, warm = folder / "crawl" / "crawl.warc.gz", folder / "warm" / "warm.warc.gz"
    for file in (warc, warm):
        file.parent.mkdir()
    megabytes = first_records(found, sizes.records, warc) / 1e6
    first_records(found, WARM, warm, skip=sizes.records)
    ours, theirs = [], []
    for number in range(sizes.rounds):
        ours.append(scaling.process(warc.parent, 1, warm.parent))
        work = folder / f"datatrove{number}"
        theirs.append(side(peer, "datatrove_chain.py", "--warc", warc, "--warm", warm, "--work", work))
    figures = {"chain.html-mb": megabytes, "chain.documents": float(sizes.records)}
    for name, rounds in (("herd", ours), ("datatrove", theirs)):
        figures |= {f"chain.{name}.{key}": middle(rounds, key) for key in rounds[0]}
        figures[f"chain.{name}.mb-s"] = megabytes / middle(rounds, "cpu-s")
    return Outcome(figures, {"chain/datatrove": ratio(theirs, ours)})


def extract(found: Corpus, peer: Path, sizes: Sizes, folder: Path) -> Outcome:
    kinds = [record["kind"] for record in found.labels["records"]]
    last = next(number for number in range(len(kinds)) if kinds[: number + 1].count("page") == sizes.pages) + 1
    pages = [page for page, kind in zip(contents(found, last), kinds, strict=False) if kind == "page"]
    file = folder / "pages.jsonl"
    extraction.write_pages(file, pages)
    pages = extraction.read_pages(file)
    ours: list[Figures] = []
    speeds: list[float] = []
    texts: list[str] = []
    for _ in range(sizes.rounds):
        ours.append(side(Path(sys.executable), "extraction.py", "--side", "herd", "--pages", file))
        speed, texts = extraction.peer(peer, file)
        speeds.append(speed)
    theirs = extraction.score_texts(pages, texts)
    figures = {f"extract.{name.replace('_', '-')}": value for name, value in ours[0].items()}
    figures |= {f"extract.trafilatura.{name.replace('_', '-')}": value for name, value in theirs.items()}
    figures["extract.mb-per-s"] = middle(ours, "mb_per_s")
    figures["extract.trafilatura.mb-per-s"] = statistics.median(speeds)
    pairs = [one["mb_per_s"] / speed for one, speed in zip(ours, speeds, strict=True)]
    return Outcome(figures, {"extract/trafilatura": statistics.median(pairs)})


def signatures(found: Corpus, peer: Path, sizes: Sizes, folder: Path) -> Outcome:
    texts, warm = folder / "texts" / "texts.jsonl", folder / "warm" / "warm.jsonl"
    made = [text for text in plain(found, sizes.records + WARM) if text.strip()]
    for file, part in ((texts, made[:-WARM]), (warm, made[-WARM:])):
        file.parent.mkdir()
        minhash.write(part, file)
    ours, theirs = [], []
    for number in range(sizes.rounds):
        ours.append(side(Path(sys.executable), "minhash.py", "--texts", texts, "--warm", warm))
        work = folder / f"datatrove{number}"
        theirs.append(side(peer, "datatrove_chain.py", "--texts", texts, "--warm", warm, "--work", work))
    figures = {"minhash.herd.cpu-s": middle(ours, "cpu-s"), "minhash.datatrove.cpu-s": middle(theirs, "cpu-s")}
    return Outcome(figures, {"minhash/datatrove": ratio(theirs, ours)})


def quality(found: Corpus, peer: Path, sizes: Sizes, folder: Path) -> Outcome:
    """Recall and false merges over the whole corpus, and how fast our chain goes over it."""
    import pyarrow.parquet as pq

    warc = folder / "crawl" / "crawl.warc.gz"
    warc.parent.mkdir()
    megabytes = first_records(found, len(found.labels["records"]), warc) / 1e6
    one = scaling.process(warc.parent, 1, work=folder / "work")
    (drops,) = (folder / "work" / "run").glob("curate-*/drops.parquet")
    found_there = minhash.quality(plain(found), found.labels, pq.read_table(drops).to_pylist(), warc.name)
    figures = {f"minhash.{name}": value for name, value in found_there.items()}
    return Outcome({"chain-mb-s": megabytes / one["cpu-s"], **figures}, {})


def million(found: Corpus, peer: Path, sizes: Sizes, folder: Path) -> Outcome:
    texts, work = folder / "short.jsonl", folder / "work"
    minhash.write(minhash.short_documents(plain(found), sizes.short), texts)
    hashed = side(Path(sys.executable), "minhash.py", "--hash", texts, "--work", work)
    joined = side(Path(sys.executable), "minhash.py", "--join", work)
    figures = {f"dedup-1m-{name}": value for name, value in joined.items()}
    return Outcome(figures | {f"dedup-1m-hashing-{name}": value for name, value in hashed.items()}, {})


def plain(found: Corpus, count: int | None = None) -> list[str]:
    """Texts of the first records as our extractor gives them."""
    from herd.data.extract import extract as text_of

    return [text_of(page, "html").text for page in contents(found, count)]


def middle(rounds: list[Figures], key: str) -> float:
    return statistics.median(one[key] for one in rounds)


def ratio(theirs: list[Figures], ours: list[Figures]) -> float:
    return statistics.median(a["cpu-s"] / b["cpu-s"] for a, b in zip(theirs, ours, strict=True))


def report(outcome: Outcome) -> None:
    """The tables, a line for each target, and the JSON line at the end."""
    figures = {name: round(value, 4) for name, value in outcome.figures.items()}
    ratios = {name: round(value, 2) for name, value in outcome.ratios.items()}
    for label, value in (figures | ratios).items():
        print(f"{label:52} {value:>12,}")
    print()
    for name, asked, less in TARGETS:
        value = (outcome.figures | outcome.ratios)[name]
        met = value <= asked if less else value >= asked
        bound = f"{'<=' if less else '>='} {say(name, asked)}"
        print(f"{'met' if met else 'MISSED':7} {name} {say(name, value)} (asked {bound})")
    print(json.dumps({"benchmark": "curate", "figures": figures, "ratios": ratios, "machine": machine()}))


def say(name: str, value: float) -> str:
    return f"{100 * value:.4g}%" if name.startswith(SHARES) else f"{value:.3g}"


if __name__ == "__main__":
    main()
