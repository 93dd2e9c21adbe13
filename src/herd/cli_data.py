"""The verbs of `herd data`. Heavy imports stay inside them, as in `cli.py`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_data_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `data curate`, `data inspect` and `data why` to the command line."""
    data = verbs.add_parser("data", help="curate a folder; look inside what was curated").add_subparsers(
        required=True, metavar="VERB"
    )
    folder = data.add_parser("curate", help="make curated documents, a tokenizer and token shards of a folder")
    folder.set_defaults(verb=_data_curate)
    folder.add_argument("folder", type=Path, metavar="DIR", help="read, never written to")
    folder.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (default: runs/NAME-of-DIR)")
    folder.add_argument("--languages", default="en", metavar="CODES", help="kept, such as en,de (default: en)")
    folder.add_argument(
        "--min-bytes", type=int, default=20_000, metavar="N", help="less curated text is an error (default: 20000)"
    )
    folder.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    folder.add_argument("--engine", choices=("local", "ray"), default="local", help="what runs them (default: local)")
    folder.add_argument("--vocab", type=int, metavar="N", help="tokens (default: from the amount of text)")
    folder.add_argument("--licence", default="unstated", metavar="TEXT", help="of the documents (default: unstated)")

    look = data.add_parser("inspect", help="the funnel of curation: steps, rules, samples, a search, SQL, pictures")
    look.set_defaults(verb=_data_inspect)
    look.add_argument("--step", metavar="STEP", help="samples that a step dropped beside some that it let pass")
    look.add_argument("--search", metavar="TEXT", help="documents by id, URL, path or words of them, and their fates")
    look.add_argument("--sql", metavar="SELECT", help="DuckDB over documents, drops, changes and samples")
    look.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the funnel")
    look.add_argument("--html", type=Path, metavar="FILE", help="write all of it as one page")
    story = data.add_parser("why", help="the story of one document: each step, and why it was kept or dropped")
    story.set_defaults(verb=_data_why)
    story.add_argument("what", metavar="ID|URL|PATH", help="or a part of the path or URL that only it has")
    for one in (look, story):
        one.add_argument("--run", type=Path, metavar="DIR", help="a run's folder (default: the newest under ./runs)")


def _data_curate(options: argparse.Namespace) -> int:
    from herd.show_data_curate import Wishes, curate_folder

    wishes = Wishes(
        languages=tuple(code.strip() for code in options.languages.split(",") if code.strip()),
        min_bytes=options.min_bytes,
        workers=options.workers,
        engine=options.engine,
        vocabulary=options.vocab,
        licence=options.licence,
    )
    curate_folder(options.folder, options.out, wishes)
    return 0


def _data_inspect(options: argparse.Namespace) -> int:
    from herd.run import finished_run
    from herd.show_data import inspect

    run = finished_run(options.run, "curate")
    return inspect(run, options.step, options.search, options.sql, options.picture, options.html)


def _data_why(options: argparse.Namespace) -> int:
    from herd.run import finished_run
    from herd.show_data_why import why

    return why(finished_run(options.run, "curate"), options.what)
