"""Data sets of Hugging Face's hub, streamed row by row with the package `datasets` (extra `hub`)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from herd.console import one_line
from herd.data.documents import RawDocument
from herd.data.files import Skipped, Unavailable
from herd.data.rows import DAY, LICENCE, row_document
from herd.recipe_data import HuggingFace


def read_hugging_face(source: HuggingFace, base: Path, skipped: Skipped) -> Iterator[RawDocument]:
    """Documents of a data set's split in the order of its rows, each named by the split and its row number (from 1).

    `base` is the folder of the recipe file: where it holds a folder of the data set's name, that is read instead of
    the hub. With `max_bytes` the first rows that fit are read and no more, because a stream can't be sampled without
    being read whole. Raises Unavailable, with the reason in one line, where the package or the data set is missing,
    the column isn't there, or the stream breaks off.
    """
    try:
        import datasets  # type: ignore[import-not-found]  # half a second, and only with the extra
    except ImportError:
        raise Unavailable("reading it needs the package datasets: pip install llm-herd[hub]") from None
    local = base / source.dataset
    rows = _rows(datasets, str(local) if local.is_dir() else source.dataset, source)
    today = datetime.now(UTC).date()
    left = source.max_bytes
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Unavailable:
            raise
        except Exception as error:  # the network's, the hub's and every file format's own
            after = f" after row {number:,}" if number else ""
            raise Unavailable(f"{source.dataset}{after}: {one_line(error)}") from None
        if row is None:
            return
        number += 1
        name = f"{source.split}#{number}"
        document = row_document(name, row, source.licence, today, skipped, (source.column,))
        if document is None:
            continue
        if left is not None:
            left -= len(document.content)
            if left < 0:
                skipped["beyond max_bytes"] += 1
                return
        yield document


def _rows(datasets: Any, path: str, source: HuggingFace) -> Iterator[dict[str, Any]]:
    """Rows with the columns that are of use, so that images and sounds beside the text are never fetched or decoded."""
    data = datasets.load_dataset(path, name=source.config, split=source.split, revision=source.revision, streaming=True)
    columns = data.column_names
    if columns is not None:
        if source.column not in columns:
            raise Unavailable(f"{source.dataset} has no column '{source.column}', only {', '.join(sorted(columns))}")
        data = data.select_columns([name for name in (source.column, "url", *LICENCE, *DAY) if name in columns])
    yield from data
