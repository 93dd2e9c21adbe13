import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd import console
from herd.console import HerdError
from herd.data import debian
from herd.data.readers import Skipped, Unavailable
from herd.data.sources import CollectSettings, collect, fingerprint
from herd.recipe_data import DebianPackages, Folder, PythonInstallation


def folder(**more: Any) -> Folder:
    return Folder(kind="folder", name="mine", path="texts", **more)


def settings(base: Path, *sources: Any) -> CollectSettings:
    return CollectSettings(sources=list(sources), base=base)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("plain text")
    (root / "sub" / "page.html").write_text("<p>page</p>")
    (root / "code.py").write_text("x = 1\n")
    (root / "t.csv").write_text("a,b\n" + "1,2\n" * 100)
    return root


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(console, "say", lines.append)
    return lines


def paths(artifact: Any) -> list[str]:
    return pq.read_table(artifact.path / "documents").column("path").to_pylist()


def test_a_folder_of_many_kinds(tmp_path: Path, texts: Path, run_stage: Any) -> None:
    artifact = run_stage(collect, settings(tmp_path, folder(licence="CC0-1.0")))
    rows = pq.read_table(artifact.path / "documents").to_pylist()
    assert [(row["path"], row["kind"], row["media"]) for row in rows] == [
        ("a.txt", "prose", "text"),
        ("code.py", "code", "python"),
        ("sub/page.html", "docs", "html"),
        ("t.csv", "table", "csv"),
    ]
    assert rows[3]["content"].count(b"\n") == 42  # name, header, 40 rows
    assert {row["licence"] for row in rows} == {"CC0-1.0"}
    assert artifact.json("sources.json")["mine"]["licences"] == {"CC0-1.0": 4}


def test_content_hash_ignores_the_day_and_the_place(tmp_path: Path, texts: Path, run_stage: Any) -> None:
    first = run_stage(collect, settings(tmp_path, folder()))
    for path in texts.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(texts, elsewhere / "texts")
    second = run_stage(collect, settings(elsewhere, folder()))
    assert first.content == second.content
    recorded = json.loads((second.path / "recorded" / "retrieved.json").read_text())
    assert recorded["mine"] == {"first": "2001-09-09", "last": "2001-09-09"}
    assert str(tmp_path) not in (second.path / "sources.json").read_text()


def test_rows_of_jsonl_and_parquet_with_bad_ones_counted(
    tmp_path: Path, texts: Path, run_stage: Any, said: list[str]
) -> None:
    lines = [
        '{"text": "one", "license": "MIT", "url": 7}',
        "{broken",
        '"a string"',
        "",
        '{"content": "two", "language": []}',
        "{}",
    ]
    (texts / "rows.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"text": ["three", None], "url": [1, 2]}), texts / "rows.parquet")
    (texts / "bad.parquet").write_bytes(b"PAR1 not really")
    artifact = run_stage(collect, settings(tmp_path, folder()))
    rows = {row["path"]: row for row in pq.read_table(artifact.path / "documents").to_pylist()}
    assert rows["rows.jsonl#1"]["content"] == b"one" and rows["rows.jsonl#1"]["licence"] == "MIT"
    assert rows["rows.jsonl#5"]["content"] == b"two" and rows["rows.jsonl#5"]["licence"] == "unstated"
    assert rows["rows.parquet#1"]["content"] == b"three"
    skipped = artifact.json("sources.json")["mine"]["skipped_files"]
    assert skipped == {"malformed line": 2, "row without text": 2, "unreadable": 1}
    assert said == ["source 'mine': 7 documents, 204 B (left out: 2 malformed line, 2 row without text, 1 unreadable)"]


def test_links_binaries_and_huge_files_are_passed_over(tmp_path: Path, texts: Path, run_stage: Any) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("outside")
    (texts / "link.txt").symlink_to(secret)
    (texts / "loop").symlink_to(texts, target_is_directory=True)
    (texts / "binary.txt").write_bytes(b"\x7fELF\0\0")
    with (texts / "huge.txt").open("wb") as stream:
        stream.truncate(20_000_001)
    artifact = run_stage(collect, settings(tmp_path, folder()))
    assert len(paths(artifact)) == 4
    assert artifact.json("sources.json")["mine"]["skipped_files"] == {
        "larger than 20 MB": 1,
        "not text": 1,
        "symbolic link": 2,
    }


def test_missing_required_folder_is_one_line_with_source_and_path(tmp_path: Path, run_stage: Any) -> None:
    with pytest.raises(HerdError) as error:
        run_stage(collect, settings(tmp_path, folder()))
    assert str(error.value) == f"source 'mine': no folder {tmp_path / 'texts'}"


def test_optional_source_is_skipped_with_one_line(tmp_path: Path, texts: Path, run_stage: Any, said: list[str]) -> None:
    absent = Folder(kind="folder", name="absent", path="nowhere", required=False)
    artifact = run_stage(collect, settings(tmp_path, absent, folder()))
    assert len(paths(artifact)) == 4
    assert [line for line in said if "absent" in line] == [
        f"source 'absent' is left out: no folder {tmp_path / 'nowhere'} (--force sources tries again)"
    ]
    assert artifact.json("sources.json")["absent"]["skipped"].startswith("no folder")


def test_empty_corpus_is_an_error(tmp_path: Path, run_stage: Any) -> None:
    (tmp_path / "texts").mkdir()
    with pytest.raises(HerdError, match=r"no documents in any source \('mine'\)"):
        run_stage(collect, settings(tmp_path, folder()))


def test_max_bytes_takes_a_fair_sample_that_only_grows(tmp_path: Path, run_stage: Any) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    for n in range(200):
        (root / f"{n:03d}.txt").write_text("x" * 100)
    small = paths(run_stage(collect, settings(tmp_path, folder(max_bytes=2_050))))
    large = paths(run_stage(collect, settings(tmp_path, folder(max_bytes=8_000))))
    assert len(small) == 20 and len(large) == 80
    assert set(small) < set(large)
    assert small == sorted(small) and small != [f"{n:03d}.txt" for n in range(20)]


def test_fingerprint_changes_with_the_folder_and_not_with_time(tmp_path: Path, texts: Path) -> None:
    python = PythonInstallation(
        kind="python-installation", name="py", modules=[], packages=["numpy", "no-such-distribution"]
    )
    before = fingerprint(settings(tmp_path, folder(), python))
    assert before == fingerprint(settings(tmp_path, folder(), python))
    assert json.loads(json.dumps(before))["py"]["packages"]["no-such-distribution"] is None
    (texts / "new.txt").write_text("more")
    assert fingerprint(settings(tmp_path, folder(), python)) != before


def test_python_installation_of_some_modules_and_a_package(tmp_path: Path, run_stage: Any) -> None:
    source = PythonInstallation(kind="python-installation", name="py", modules=["json", "ast"], packages=["pydantic"])
    artifact = run_stage(collect, settings(tmp_path, source))
    rows = pq.read_table(artifact.path / "documents").to_pylist()
    found = {row["path"]: row for row in rows}
    assert {"ast.py", "json/decoder.py", "pydantic/main.py", "pydantic/README"} <= set(found)
    assert found["ast.py"]["licence"] == "PSF-2.0" and found["pydantic/main.py"]["licence"] == "MIT"
    assert found["pydantic/README"]["media"] == "markdown"
    assert not any(path.startswith(("/", "..")) for path in found)


def test_missing_package_is_an_error_that_names_it(tmp_path: Path, run_stage: Any) -> None:
    source = PythonInstallation(
        kind="python-installation", name="py", standard_library=False, modules=[], packages=["no-such-thing"]
    )
    with pytest.raises(HerdError, match="source 'py': the package 'no-such-thing' is not installed"):
        run_stage(collect, settings(tmp_path, source))


def test_a_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_stage: Any) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("apt-get and dpkg-deb are not on this machine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(debian, "TIMEOUT_SECONDS", 30)
    source = DebianPackages(kind="debian-packages", name="deb", packages=["git-doc"], required=True)
    try:
        artifact = run_stage(collect, settings(tmp_path, source))
    except HerdError as error:
        pytest.skip(f"apt-get can't deliver git-doc here: {error}")
    rows = pq.read_table(artifact.path / "documents").to_pylist()
    assert len(rows) > 200 and {row["kind"] for row in rows} == {"docs"}
    assert all(row["path"].startswith("git") and "GPL-2" in row["licence"] for row in rows)
    monkeypatch.setenv("PATH", str(Path(shutil.which("dpkg-deb") or "").parent))
    monkeypatch.setattr(debian.Apt, "_run", lambda *_: "no network")
    assert run_stage(collect, settings(tmp_path, source)).content == artifact.content


def test_without_apt_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    source = DebianPackages(kind="debian-packages", name="deb", packages=["git-doc"], required=False)
    with pytest.raises(Unavailable, match="apt-get is not on this machine"):
        list(debian.read_debian_packages(source, Skipped()))


def test_licences_of_a_copyright_file() -> None:
    text = "Files: *\nLicense: GPL-2\n\nFiles: x\nLicense: MIT\n text\n\nLicense: GPL-2\n more\n"
    assert debian.licence_of_copyright(text) == "GPL-2 AND MIT"
    assert debian.licence_of_copyright("This is free software.") == ""


def test_odd_names_and_rows_are_counted_and_never_stop_the_rest(tmp_path: Path, texts: Path, run_stage: Any) -> None:
    """A name that is not UTF-8, a lone surrogate in a licence or a text, and a run of herd below the folder."""
    (texts / os.fsdecode(b"caf\xe9.txt")).write_text("latin name")
    (texts / "s.py").write_bytes(b"# coding: unicode_escape\ns = '\\ud800 \xff'\n")
    (texts / "rows.jsonl").write_text('{"text": "a row", "license": "\\ud800' + "x" * 500 + '"}\n')
    (texts / "runs" / "old").mkdir(parents=True)
    for name in ("current.json", "evidence.jsonl", "report.html"):
        (texts / "runs" / "old" / name).write_text("{}")
    artifact = run_stage(collect, settings(tmp_path, folder()))
    counted = json.dumps(artifact.json("sources.json"))
    assert "file name not UTF-8" in counted and "a run of herd" in counted
    rows = pq.read_table(artifact.path / "documents", columns=["path", "licence"]).to_pylist()
    assert not [row for row in rows if "old" in row["path"]]
    assert all(len(row["licence"]) <= 100 for row in rows)
    assert len([row for row in rows if row["path"].startswith("rows.jsonl")]) == 1
