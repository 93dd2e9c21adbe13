"""The outcome of curation does not depend on who computes it, nor on what was killed on the way."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from herd import console
from herd.artifact import Artifact, find, publish
from herd.console import HerdError
from herd.data import funnel
from herd.data.curate import CurateSettings, curate
from herd.data.engine import Crew, Engine
from herd.data.sources import CollectSettings, collect
from herd.recipe_data import Data, Folder

KEY = "0" * 64
SOURCE = Folder(kind="folder", name="pages", path="pages")
CURATE = """
import sys
from pathlib import Path
from herd.artifact import find, publish
from herd.data.curate import curate
from test_engine import KEY, settings
if __name__ == "__main__":
    run = Path(sys.argv[1])
    with publish(run, "curate", KEY, {}, {}) as draft:
        curate(settings(workers=int(sys.argv[2])), {"sources": find(run, "sources", KEY)}, draft)
"""


def settings(**more: Any) -> CurateSettings:
    data = Data(source=[SOURCE], min_bytes=1000, held_out_share=0.1, **more)
    return CurateSettings(data=data, seed=3)


def run_with(run: Path, **more: Any) -> Artifact:
    sources = find(run, "sources", KEY)
    assert sources is not None
    with publish(run, "curate", KEY, {}, {}) as draft:
        curate(settings(**more), {"sources": sources}, draft)
    artifact = find(run, "curate", KEY)
    assert artifact is not None
    return artifact


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {name: artifact.file(name).read_bytes() for name in artifact.manifest["files"]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chapters of Python's language reference as pages in a dozen parts, with copies and near-copies in other parts."""
    base = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    chapters = [text for _, text in sorted(topics.items()) if 1_000 < len(text) < 30_000]
    for number in range(160):
        text = chapters[number % len(chapters)]
        if number % 3 == 0:
            words = text.split(" ")
            words[draw.randrange(len(words))] = "changed"
            text = " ".join(words)
        page = f"<p>Read the newsletter of our project</p><pre>{escape(text)}</pre>"
        path = base / "pages" / f"{draw.randrange(10**6):06}-{number}.html"
        path.parent.mkdir(exist_ok=True)
        path.write_text(page)
    return base


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Path:
    """A run of its own whose sources are read, in parts of 100 kB."""
    with publish(tmp_path, "sources", KEY, {}, {}) as draft:
        collect(CollectSettings(sources=[SOURCE], base=corpus, part_bytes=100_000, engine=Engine(workers=1)), {}, draft)
    return tmp_path


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What one process makes of it."""
    run = tmp_path_factory.mktemp("expected")
    with publish(run, "sources", KEY, {}, {}) as draft:
        collect(CollectSettings(sources=[SOURCE], base=corpus, part_bytes=100_000, engine=Engine(workers=1)), {}, draft)
    return run_with(run, workers=1)


def test_two_workers_write_the_bytes_of_one(run: Path, expected: Artifact) -> None:
    found = run_with(run, workers=2)
    assert contents(found) == contents(expected)
    funnel = found.json("funnel.json")
    dropped = {step["step"]: step["documents_dropped"] for step in funnel["steps"]}
    assert dropped["exact"] > 5 and dropped["near"] > 5  # copies were found although they lie in other parts


def test_units_of_any_number_of_readers_give_the_same_parts(corpus: Path, tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        with publish(tmp_path / str(workers), "sources", KEY, {}, {}) as draft:
            collect(
                CollectSettings(sources=[SOURCE], base=corpus, part_bytes=200_000, engine=Engine(workers=workers)),
                {},
                draft,
            )
        artifact = find(tmp_path / str(workers), "sources", KEY)
        assert artifact is not None
        found.append(artifact.content)
    assert found[0] == found[1]


def test_other_parts_change_nothing_that_is_published(corpus: Path, tmp_path: Path, expected: Artifact) -> None:
    with publish(tmp_path, "sources", KEY, {}, {}) as draft:
        collect(CollectSettings(sources=[SOURCE], base=corpus, part_bytes=450_000, engine=Engine(workers=1)), {}, draft)
    assert run_with(tmp_path, workers=1).content == expected.content


def test_ray_writes_the_same_and_ends_with_the_stage(run: Path, expected: Artifact) -> None:
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    found = run_with(run, engine="ray", workers=2)
    assert contents(found) == contents(expected)
    assert not ray.is_initialized()


def test_an_error_of_a_task_on_ray_is_raised_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    with pytest.raises(HerdError) as caught, Crew(Engine("ray", 1)) as crew:
        crew.run("work", fail, tasks([1, 2, 3]), tmp_path / "work")
    assert str(caught.value).startswith("bad value")  # and no traceback of another process


def test_a_stopped_run_goes_on_where_its_folder_was_moved_to_by_a_relative_path(
    run: Path, expected: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise HerdError("stopped")

    with monkeypatch.context() as patched, pytest.raises(HerdError, match="stopped"):
        patched.setattr(funnel, "write_records", stop)
        run_with(run, workers=1)
    moved = run.with_name("moved")
    run.rename(moved)
    monkeypatch.chdir(moved.parent)
    assert contents(run_with(Path("moved"), workers=1)) == contents(expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_runs_go_on_and_end_with_the_same(workers: int, run: Path, expected: Artifact) -> None:
    work = run / ".drafts"
    script = run / "go.py"
    script.write_text(CURATE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    counts = []
    for results in (3, 17, 31):  # of about 50; in the first pass, among the comparisons, in the later passes
        process = subprocess.Popen(
            [sys.executable, str(script), str(run), str(workers)], env=environment, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while len(list(work.glob("*.work/*/*.json"))) < results and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        counts.append(len(list(work.glob("*.work/*/*.json"))))
    assert counts == sorted(counts) and counts[0] >= 3
    assert contents(run_with(run, workers=1)) == contents(expected)


def double(number: int) -> int:
    return 2 * number


def die_once(task: tuple[Path, int]) -> int:
    marker, number = task
    if number == 5 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def die_always(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def fail(number: int) -> int:
    raise HerdError(f"bad value {number}")


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    lines: list[str] = []
    monkeypatch.setattr(console, "warn", lines.append)
    yield lines


def tasks(values: list[Any]) -> list[tuple[str, Any]]:
    return [(f"{i:03}", value) for i, value in enumerate(values)]


def test_a_vanished_worker_loses_nothing(tmp_path: Path, warned: list[str]) -> None:
    with Crew(Engine(workers=2)) as crew:
        jobs = tasks([(tmp_path / "died", n) for n in range(12)])
        assert crew.run("work", die_once, jobs, tmp_path / "work") == [2 * n for n in range(12)]
        assert (tmp_path / "died").exists() and len(warned) == 1 and "vanished" in warned[0]
        assert crew.run("more", double, tasks([1, 2, 3]), tmp_path / "more") == [2, 4, 6]


def test_a_task_that_kills_its_worker_is_named_and_the_others_are_kept(tmp_path: Path, warned: list[str]) -> None:
    with (
        pytest.raises(HerdError, match="the task 005 killed its worker process 2 times"),
        Crew(Engine(workers=2)) as crew,
    ):
        crew.run("work", die_always, tasks(list(range(12))), tmp_path / "work")
    assert {path.stem for path in (tmp_path / "work").glob("*.json")} >= {f"{n:03}" for n in range(5)}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_is_raised_as_it_is(tmp_path: Path, workers: int) -> None:
    with pytest.raises(HerdError, match="bad value"), Crew(Engine(workers=workers)) as crew:
        crew.run("work", fail, tasks([1, 2, 3]), tmp_path / "work")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    with Crew(Engine(workers=1)) as crew:
        assert crew.run("work", double, tasks([1, 2]), tmp_path / "work") == [2, 4]
        assert crew.run("work", fail, tasks([1, 2]), tmp_path / "work") == [2, 4]


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HerdError, match=r"pip install 'llm-herd\[cluster\]'"), Crew(Engine("ray")) as crew:
        crew.run("work", double, tasks([1]), tmp_path / "work")
