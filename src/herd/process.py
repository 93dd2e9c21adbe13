"""This process: the cores it may use, and whether memory it frees stays with it or goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # numbers of glibc's mallopt


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Keep big buffers in the heap when they are freed, for work that frees and asks for the same megabytes over and
    over: returned to the system each time, their pages are zeroed and mapped anew. That cost a fifth of a small
    network's training step, half of a 135M network's, and a tenth of curation."""
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def release_memory() -> None:
    """Return to the system what is free in the heap. Buffers of many lengths leave gaps that none fits any more."""
    gc.collect()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
