"""An artifact is there whole or not at all, and its two hashes change with what they should change with, only."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd import artifact as artifacts
from herd.artifact import (
    MANIFEST,
    Artifact,
    Draft,
    clean_drafts,
    find,
    forget_unfinished,
    open_artifact,
    publish,
    stage_key,
    verify,
    write_atomically,
)
from herd.console import HerdError

KEY = stage_key("toy", 1, {"width": 3}, {})
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=8,
)


def publish_toy(run: Path, text: str = "hello", key: str = KEY, seconds: float = 1.0) -> Artifact:
    with publish(run, "toy", key, {"inputs": {}}, {"date": "today"}) as draft:
        (draft.folder / "parts").mkdir()
        (draft.folder / "parts" / "a.txt").write_text(text)
        draft.write_json("numbers/n.json", [1, 2])
        draft.write_json("recorded/speed.json", seconds)
        (draft.work / "half").write_text("a checkpoint")
    found = find(run, "toy", key)
    assert found is not None
    return found


def leftovers(run: Path) -> list[str]:
    return [str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()]


def test_what_was_published_is_found_read_and_verified(tmp_path):
    made = publish_toy(tmp_path)
    assert (made.stage, made.key) == ("toy", KEY)
    assert made.json("numbers/n.json") == [1, 2] and made.file("parts/a.txt").read_text() == "hello"
    assert verify(made) == []
    assert find(tmp_path, "toy", stage_key("toy", 2, {"width": 3}, {})) is None
    assert [p.name for p in tmp_path.iterdir() if p.is_dir() and not p.name.startswith(".")] == [made.path.name]
    assert list((tmp_path / ".drafts").iterdir()) == []
    with pytest.raises(HerdError, match=r"no file 'b\.txt'"):
        made.file("b.txt")


def test_two_keys_that_share_a_folder_name_are_told_apart(tmp_path):
    publish_toy(tmp_path)
    assert find(tmp_path, "toy", KEY[:12] + "0" * 52) is None


def test_a_changed_byte_is_found_by_verify(tmp_path):
    made = publish_toy(tmp_path)
    (made.path / "parts/a.txt").write_text("hellO")
    assert verify(open_artifact(made.path)) == ["parts/a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, HerdError])
def test_a_writer_that_raises_leaves_only_its_work(tmp_path, error):
    with pytest.raises(error), publish(tmp_path, "toy", KEY, {}, {}) as draft:
        (draft.folder / "a.txt").write_text("half")
        (draft.work / "checkpoint").write_text("kept")
        raise error("stopped")
    assert find(tmp_path, "toy", KEY) is None
    assert [Path(p).name for p in leftovers(tmp_path)] == ["checkpoint"]
    with publish(tmp_path, "toy", KEY, {}, {}) as draft:
        assert (draft.work / "checkpoint").read_text() == "kept"  # the next try goes on from here
    assert leftovers(tmp_path) == [f"toy-{KEY[:12]}/{MANIFEST}"]


def test_what_a_killed_stage_left_can_be_forgotten(tmp_path):
    for stage in ("toy", "toy-two"):
        with pytest.raises(KeyboardInterrupt), publish(tmp_path, stage, KEY, {}, {}) as draft:
            (draft.work / "checkpoint").write_text("of older code")
            raise KeyboardInterrupt
    forget_unfinished(tmp_path, "toy", KEY)
    assert [Path(p).parent.name for p in leftovers(tmp_path)] == [f"toy-two-{KEY[:12]}.work"]
    forget_unfinished(tmp_path, "toy", KEY)


def test_values_that_json_cannot_hold_leave_nothing(tmp_path):
    with pytest.raises(ValueError), publish(tmp_path, "toy", KEY, {"rate": float("nan")}, {}) as draft:
        (draft.folder / "a.txt").write_text("whole")
    assert leftovers(tmp_path) == []


def test_publishing_again_replaces_the_old_folder(tmp_path):
    publish_toy(tmp_path, "old")
    assert publish_toy(tmp_path, "new").file("parts/a.txt").read_text() == "new"


@contextlib.contextmanager
def careless_publish(run, stage, key, asked, recorded):
    """What publish must not be: marker first, files straight under the final name."""
    folder = run / artifacts.folder_name(stage, key)
    folder.mkdir(exist_ok=True)
    work = run / ".work"
    work.mkdir(exist_ok=True)
    manifest = {
        "schema": 1,
        "stage": stage,
        "key": key,
        "content": "",
        "asked": asked,
        "files": {},
        "recorded": recorded,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    yield Draft(folder, work)


def fork_killed_at_each_moment(run: Path, again: bool, sabotage: bool) -> list[str]:
    """Faults seen when a publishing process is killed at its n-th touch of the disk, for every n; one child a moment.

    Children are forked from one process that has imported everything, so that a moment costs milliseconds.
    """
    faults, moment = [], 0
    while True:
        folder = run / f"moment-{moment}"
        folder.mkdir(parents=True)
        if again:
            publish_toy(folder, "old")
        child = os.fork()
        if child == 0:
            _die_while_publishing(folder, moment, sabotage)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert moment > 10 or sabotage
            return faults
        assert os.WTERMSIG(status) == signal.SIGKILL
        faults += [f"killed at {moment}: {fault}" for fault in what_is_wrong(folder)]
        moment += 1


def _die_while_publishing(folder: Path, moment: int, sabotage: bool) -> None:
    left = [moment]

    def watch(event: str, arguments: object) -> None:
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(watch)
        if sabotage:
            globals()["publish"] = careless_publish
        publish_toy(folder, "new")
        os._exit(0)
    except BaseException:
        os._exit(1)


def what_is_wrong(run: Path) -> list[str]:
    """The check: after a kill, what `find` accepts is whole, it raises nothing, and clean_drafts clears the rest."""
    faults = []
    try:
        found = find(run, "toy", KEY)
        if found is not None:
            names = {"parts/a.txt", "numbers/n.json", "recorded/speed.json"}
            if set(found.manifest["files"]) != names or verify(found):
                faults.append("find accepts a part of an artifact")
    except (HerdError, OSError) as error:
        faults.append(f"find fails: {error}")
    clean_drafts(run)
    if [p for p in (run / ".drafts").glob("*") if not p.name.endswith(".work")]:
        faults.append("a draft is left after cleaning")
    return faults


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
@pytest.mark.parametrize("again", [False, True], ids=["first", "over an old one"])
def test_a_process_killed_at_any_moment_leaves_a_whole_artifact_or_none(tmp_path, again):
    assert fork_killed_at_each_moment(tmp_path, again, sabotage=False) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_the_check_notices_a_publish_that_is_not_atomic(tmp_path):
    faults = fork_killed_at_each_moment(tmp_path, again=False, sabotage=True)
    assert any("accepts a part" in fault for fault in faults)


def test_a_separate_process_killed_while_it_writes_leaves_a_draft_that_is_cleaned(tmp_path):
    writer = (
        "import sys, pathlib, time; from herd.artifact import publish\n"
        "with publish(pathlib.Path(sys.argv[1]), 'toy', sys.argv[2], {}, {}) as draft:\n"
        "    (draft.folder / 'a.txt').write_text('half'); (draft.work / 'part').write_text('kept')\n"
        "    print('writing', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", writer, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    child.kill()
    child.communicate()
    assert find(tmp_path, "toy", KEY) is None
    assert len(leftovers(tmp_path)) == 2
    clean_drafts(tmp_path)
    assert [Path(p).name for p in leftovers(tmp_path)] == ["part"]


def spoil_marker(path: Path, text: str) -> str:
    (path / MANIFEST).write_text(text)
    return MANIFEST


def without_files(path: Path) -> str:
    manifest = json.loads((path / MANIFEST).read_text())
    return spoil_marker(path, json.dumps({k: v for k, v in manifest.items() if k != "files"}))


def other_schema(path: Path) -> str:
    manifest = json.loads((path / MANIFEST).read_text())
    return spoil_marker(path, json.dumps(manifest | {"schema": 99}))


def truncate(path: Path) -> str:
    (path / "parts/a.txt").write_text("hell")
    return "a.txt"


def remove(path: Path) -> str:
    (path / "numbers/n.json").unlink()
    return "n.json"


def binary(path: Path) -> str:
    (path / MANIFEST).write_bytes(b"\xff\xfe\x00")
    return MANIFEST


DAMAGES = {
    "empty": lambda p: spoil_marker(p, ""),
    "cut": lambda p: spoil_marker(p, '{"schema": 1, '),
    "list": lambda p: spoil_marker(p, "[]"),
    "binary": binary,
    "no files": without_files,
    "schema": other_schema,
    "truncated": truncate,
    "removed": remove,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line_that_names_the_file(tmp_path, damage):
    made = publish_toy(tmp_path)
    name = DAMAGES[damage](made.path)
    for look in (lambda: open_artifact(made.path), lambda: find(tmp_path, "toy", KEY)):
        with pytest.raises(HerdError) as caught:
            look()
        assert name in str(caught.value) and str(made.path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_its_marker_is_no_artifact(tmp_path):
    made = publish_toy(tmp_path)
    (made.path / MANIFEST).unlink()
    assert find(tmp_path, "toy", KEY) is None
    with pytest.raises(HerdError, match=r"manifest\.json is missing"):
        open_artifact(made.path)
    assert publish_toy(tmp_path, "again").file("parts/a.txt").read_text() == "again"


def test_content_is_what_came_out_and_not_how_long_it_took(tmp_path):
    first = publish_toy(tmp_path / "1", seconds=1.0)
    assert publish_toy(tmp_path / "2", seconds=2.0).content == first.content
    assert publish_toy(tmp_path / "3", text="other").content != first.content


def test_a_moved_byte_or_a_renamed_file_changes_the_content(tmp_path):
    def content(name: str, files: dict[str, str]) -> str:
        with publish(tmp_path / name, "toy", KEY, {}, {}) as draft:
            for file, text in files.items():
                (draft.folder / file).write_text(text)
        return open_artifact(tmp_path / name / f"toy-{KEY[:12]}").content

    cases = [{"a": "x", "b": "y"}, {"a": "y", "b": "x"}, {"a": "x", "c": "y"}, {"a": "x"}, {"a": "xy", "b": ""}]
    assert len({content(str(i), files) for i, files in enumerate(cases)}) == len(cases)


def test_an_identified_file_counts_by_its_identity(tmp_path):
    def made(name: str, text: str, identity: str) -> Artifact:
        with publish(tmp_path / name, "toy", KEY, {}, {}) as draft:
            (draft.folder / "documents").write_text(text)
            draft.identify("documents", identity)
        return open_artifact(tmp_path / name / f"toy-{KEY[:12]}")

    monday, tuesday = made("1", "fetched on Monday", "same"), made("2", "fetched on Tuesday", "same")
    assert monday.content == tuesday.content
    assert made("3", "fetched on Monday", "other").content != monday.content
    (tuesday.path / "documents").write_text("fetched on tuesday")
    assert verify(tuesday) == ["documents"]  # the bytes are still checked


def test_identifying_a_file_that_was_not_written_is_an_error(tmp_path):
    with pytest.raises((HerdError, ValueError), match="documents"), publish(tmp_path, "toy", KEY, {}, {}) as draft:
        draft.identify("documents", "typo")


@given(st.dictionaries(st.text(), JSON_VALUES, min_size=1))
def test_a_key_does_not_depend_on_the_order_of_settings(settings):
    backwards = dict(reversed(settings.items()))
    assert stage_key("toy", 1, settings, {}) == stage_key("toy", 1, backwards, {})


@given(st.dictionaries(st.text(), JSON_VALUES), st.text(), JSON_VALUES, st.text(min_size=1))
def test_a_key_changes_with_all_that_is_asked(settings, name, value, digest):
    key = stage_key("toy", 1, settings, {"data": digest})
    assert stage_key("toy", 2, settings, {"data": digest}) != key
    assert stage_key("toys", 1, settings, {"data": digest}) != key
    assert stage_key("toy", 1, settings, {"data": digest + "0"}) != key
    assert stage_key("toy", 1, settings, {"other": digest}) != key
    changed = {**settings, name: [value]}
    assert (stage_key("toy", 1, changed, {"data": digest}) == key) == (changed == settings)


def test_json_is_utf8_whatever_the_locale(tmp_path):
    """Names of documents may hold any letter; the content hash must not depend on the machine's locale."""
    writer = (
        "import sys, pathlib; from herd.artifact import publish, find\n"
        "run = pathlib.Path(sys.argv[1])\n"
        "with publish(run, 'toy', sys.argv[2], {'name': 'na\\u00efve'}, {}) as draft:\n"
        "    draft.write_json('names.json', ['na\\u00efve'])\n"
        "print(find(run, 'toy', sys.argv[2]).content)\n"
    )
    contents = set()
    for name, utf8 in (("plain", "0"), ("utf8", "1")):
        environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", writer, str(tmp_path / name), KEY], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        contents.add(done.stdout)
    assert len(contents) == 1
    assert open_artifact(tmp_path / "plain" / f"toy-{KEY[:12]}").json("names.json") == ["naïve"]


@pytest.mark.parametrize("data", ["text ï", b"bytes"])
def test_an_atomic_write_shows_old_or_new(tmp_path, data):
    path = tmp_path / "marker.json"
    write_atomically(path, "old")
    write_atomically(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert [p.name for p in tmp_path.iterdir()] == ["marker.json"]


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_an_atomic_write_that_fails_leaves_the_old_bytes_and_no_part(tmp_path, monkeypatch, fault):
    path = tmp_path / "marker.json"
    write_atomically(path, "old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full_disk) if fault == "fsync" else (Path, "replace", full_disk)))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("marker.json", "old")]
