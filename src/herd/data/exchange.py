"""Moving facts of documents to where they meet: sorted runs of keys on disk, read by key range.

Every part of the corpus writes its keys sorted, with the row each belongs to. A task for a range of keys reads its
slice of every run, so that equal keys meet in one task, memory is bounded by the number of ranges, and nothing is
held or sent that the range doesn't need. Arrays of facts for all documents lie in files that are mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.data.words import Hashes

RANGE_KEYS = 4_000_000  # keys a task takes at once: about 200 MB while they are sorted


def write_run(path: Path, keys: Hashes, rows: NDArray[np.int64]) -> None:
    """Write keys, sorted, beside the rows of the part they belong to: PATH.keys.npy and PATH.rows.npy."""
    order = np.argsort(keys, kind="stable")
    np.save(f"{path}.keys.npy", keys[order])
    np.save(f"{path}.rows.npy", rows[order].astype(np.uint32))


def ranges(keys: int) -> int:
    """How many ranges to cut the space of keys into for so many keys."""
    return max(1, -(-keys // RANGE_KEYS))


def read_range(runs: Sequence[tuple[Path, int]], index: int, count: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Keys of range `index` of `count` from all runs, and the documents they belong to.

    A run comes with the number of its part's first document. Keys of different runs are not sorted together.
    """
    bounds = [index * 2**64 // count, (index + 1) * 2**64 // count]
    all_keys, all_numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for path, first in runs:
        keys = np.load(f"{path}.keys.npy", mmap_mode="r")
        start = int(np.searchsorted(keys, np.uint64(bounds[0])))
        stop = int(np.searchsorted(keys, np.uint64(bounds[1]))) if bounds[1] < 2**64 else len(keys)
        if start < stop:
            all_keys.append(np.array(keys[start:stop]))
            rows = np.load(f"{path}.rows.npy", mmap_mode="r")
            all_numbers.append(np.array(rows[start:stop]).astype(np.int64) + first)
    return np.concatenate(all_keys), np.concatenate(all_numbers)


def join_arrays(parts: Sequence[Path], target: Path) -> Any:
    """Arrays of all parts as one file, mapped; only one part is in memory at a time."""
    lengths = [len(np.load(part, mmap_mode="r")) for part in parts]
    first = np.load(parts[0], mmap_mode="r")
    joined = np.lib.format.open_memmap(target, "w+", first.dtype, (sum(lengths), *first.shape[1:]))
    start = 0
    for part in parts:
        array = np.load(part)
        joined[start : start + len(array)] = array
        start += len(array)
    joined.flush()
    return np.load(target, mmap_mode="r")
