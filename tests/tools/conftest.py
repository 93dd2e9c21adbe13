"""Sandboxes with walls, in a hurry, and without walls."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from herd.tools.sandbox import Limits, Sandbox


@pytest.fixture(scope="module")
def walled(walls: None) -> Iterator[Sandbox]:
    with Sandbox(Limits(seconds=20, memory_bytes=512 << 20, disk_bytes=8 << 20)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def hasty(walls: None) -> Iterator[Sandbox]:
    with Sandbox(Limits(seconds=1, memory_bytes=512 << 20)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def unwalled() -> Iterator[Sandbox]:
    os.environ["HERD_TEST_SECRET"] = "xyzzy-7341"
    with Sandbox(Limits(seconds=20), backend="none-unsafe") as sandbox:
        yield sandbox
    del os.environ["HERD_TEST_SECRET"]
