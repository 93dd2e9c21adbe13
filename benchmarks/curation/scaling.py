"""Our chain over a WARC in a process of its own, and how its time and memory grow with the corpus.

    python scaling.py --warc FOLDER --work FOLDER --workers N [--warm FOLDER]

One line of JSON: CPU and wall seconds of `collect` and `curate` as `herd data curate` runs them, with all rules on, and
peak memory. Imports are not counted; with --warm a small folder is curated first, so that models and lists are loaded.
Memory is the largest sum, seen every 50 ms, of what the process and its workers have resident; pages that they share
count in each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

DOUBLINGS = (8, 4, 2, 1)  # the corpus divided by these
WORKERS = (1, 2)
DIRTY_WORDS = "npm:naughty-words==1.2.0:package/en.json"  # downloaded on the first run and kept in the user's cache
Figures = dict[str, float]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--warc", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--warm", type=Path)
    chosen = options.parse_args()
    if chosen.warm:
        chain(chosen.warm, chosen.work / "warm", 1)
    print(json.dumps(chain(chosen.warc, chosen.work / "run", chosen.workers)))


def chain(warc: Path, run: Path, workers: int) -> Figures:
    """Curate a folder into a run folder, as the stages of a recipe do."""
    from herd.data.curate import CurateSettings, curate
    from herd.data.engine import Engine
    from herd.data.sources import CollectSettings, collect
    from herd.recipe_data import Data, Folder

    source = Folder(kind="folder", name="crawl", path=str(warc))
    data = Data(source=[source], min_bytes=1, workers=workers, dirty_words=[DIRTY_WORDS])
    asked = CollectSettings(sources=[source], base=warc, engine=Engine("local", workers))
    before, started = cpu(), time.perf_counter()
    with Memory() as memory:
        sources = stage(run, "sources", collect, asked, {})
        between = cpu()
        curated = stage(run, "curate", curate, CurateSettings(data=data, seed=1), {"sources": sources})
    figures = {"cpu-s": cpu() - before, "collect-s": between - before, "wall-s": time.perf_counter() - started}
    kept = json.loads(curated.file("funnel.json").read_text())["kept"]
    return {**figures, "peak-gb": memory.peak, "documents-kept": kept["documents"]}


def stage(run: Path, name: str, work: Any, settings: Any, inputs: Mapping[str, Any]) -> Any:
    """Run a stage; the artifact that it publishes."""
    from herd.artifact import find, publish

    run.mkdir(parents=True, exist_ok=True)
    with publish(run, name, "0" * 64, {}, {}) as draft:
        work(settings, inputs, draft)
    return find(run, name, "0" * 64)


def cpu() -> float:
    """CPU seconds so far of this process and its ended children."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


class Memory:
    """Watches, in a `with` block, what this process and its children have resident; `peak` in GB."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, sum(map(resident, family())))

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def family() -> list[str]:
    """This process and its children; a pool's workers have none."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return ["self", *children]


def resident(process: str) -> float:
    """Resident memory in GB; 0 where the process has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    except OSError:
        return 0.0


def process(warc: Path, workers: int, warm: Path | None = None, work: Path | None = None) -> Figures:
    """`chain` in a process of its own; its run stays in `work` where one is given."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--warc", str(warc), "--work", str(work or folder)]
        command += ["--workers", str(workers)] + (["--warm", str(warm)] if warm else [])
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"curating {warc} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def grow(found: Any, folder: Path) -> dict[int, list[tuple[float, Figures]]]:
    """By workers: (MB of HTML, figures) for the corpus' first eighth, quarter, half, and all of it."""
    from curation.corpus import first_records

    sizes: list[tuple[float, Path]] = []
    ends = list(accumulate(record["bytes"] for record in found.labels["records"]))
    for part in DOUBLINGS:
        (folder / f"part{part}").mkdir(parents=True)
        records = bisect_left(ends, ends[-1] / part) + 1  # by bytes: pages differ too much in size
        size = first_records(found, records, folder / f"part{part}" / "crawl.warc.gz")
        sizes.append((size / 1e6, folder / f"part{part}"))
    return {workers: [(size, process(warc, workers)) for size, warc in sizes] for workers in WORKERS}


def draw(grown: Mapping[int, Sequence[tuple[float, Figures]]], to: Path) -> None:
    """Wall time and peak memory over the size of the corpus, a line for each number of workers."""
    import matplotlib
    from matplotlib.figure import Figure

    colours = dict(zip(grown, ("#0072b2", "#d55e00"), strict=False))  # of Okabe and Ito's, as in the report
    settings: Any = {
        "font.size": 9.8, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#b0b0b0",
        "axes.labelcolor": "#606060", "xtick.color": "#606060", "ytick.color": "#606060", "axes.linewidth": 0.8,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8.2, 3.2), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, name, label in zip(panels, ("wall-s", "peak-gb"), ("seconds", "peak memory, GB"), strict=True):
            for workers, points in grown.items():
                sizes, values = [size for size, _ in points], [figures[name] for _, figures in points]
                axes.plot(sizes, values, "o-", color=colours[workers], linewidth=1.3, markersize=4.5)
                text = "1 worker" if workers == 1 else f"{workers} workers"
                at = (sizes[-1], values[-1])
                up = 5 if values[-1] == max(points[-1][1][name] for points in grown.values()) else -5
                axes.annotate(text, at, (6, up), textcoords="offset points", va="center", color=colours[workers])
            sizes = [size for size, _ in next(iter(grown.values()))]
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
            axes.minorticks_off()
            axes.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.9)
            if name == "wall-s":
                axes.set_yscale("log", base=2)
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            else:
                axes.set_ylim(0)
            axes.set_xlabel("MB of HTML")
            axes.set_ylabel(label)
        figure.savefig(to, dpi=160)


if __name__ == "__main__":
    main()
