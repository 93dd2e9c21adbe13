import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from herd.console import HerdError
from herd.data.domain_scores import DomainCounts, Thresholds, merge, verdicts
from herd.data.domains import DomainList, host_of, site_of


def _load(tmp_path: Path, text: str, name: str = "list.txt") -> DomainList:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return DomainList.load([name], tmp_path)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Docs.Python.org:443/3/library/os.html", "docs.python.org"),
        ("https://docs.python.org@bad.example/", "bad.example"),
        ("https://docs.python.org\\@bad.example/", "docs.python.org"),
        ("http:///bad.example/", "bad.example"),
        ("//bad.example./x", "bad.example"),
        ("http://bücher.example/", "xn--bcher-kva.example"),
        ("http://bad%2eexample/", "bad.example"),
        ("http://ｂａｄ。example/", "bad.example"),
        ("http://0x7f.1/", "127.0.0.1"),
        ("http://2130706433/", "127.0.0.1"),
        ("http://[2001:DB8::1]:8080/x", "2001:db8::1"),
        ("http://:80/", ""),
        ("docs/index.html", ""),
        ("mailto:jane@bad.example", ""),
        ("", ""),
    ],
)
def test_the_host_of_an_address_is_the_one_a_browser_goes_to(url: str, host: str) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("docs.python.org", "python.org"),
        ("www.ibm.de", "ibm.de"),
        ("news.bbc.co.uk", "bbc.co.uk"),
        ("jane.github.io", "jane.github.io"),
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_pages_are_grouped_by_what_someone_registered(host: str, site: str) -> None:
    assert site_of(host) == site


def test_blocks_listed_domains_and_what_is_below_them_and_nothing_else(tmp_path: Path) -> None:
    listed = _load(
        tmp_path,
        "# a comment\n! another\n\nbad.example\r\n*.wild.example\n.dotted.example\n"
        "||adblock.example^\nWWW.Upper.Example\n"
        "0.0.0.0 localhost\n0.0.0.0 hosts.example  # why\n127.0.0.1\ttwo.example three.example\nbücher.example\n"
        "http://shared.example/bad/\ncom\nco.uk\n203.0.113.9\nthis line is prose\n",
    )
    blocked = {
        "http://bad.example/": "bad.example",
        "https://a.b.BAD.example:8443/x?y": "bad.example",
        "https://docs.python.org@bad.example/": "bad.example",
        "http://x.wild.example": "wild.example",
        "http://dotted.example/": "dotted.example",
        "http://adblock.example/": "adblock.example",
        "http://upper.example/": "upper.example",
        "http://www.hosts.example/": "hosts.example",
        "http://two.example/": "two.example",
        "http://three.example/": "three.example",
        "http://xn--bcher-kva.example/": "xn--bcher-kva.example",
        "http://shared.example/bad": "shared.example/bad",
        "http://shared.example/bad/page.html?x=1": "shared.example/bad",
        "http://203.0.113.9/": "203.0.113.9",
    }
    assert {url: listed.blocked(url) for url in blocked} == blocked
    for url in (
        "https://docs.python.org/3/",
        "http://notbad.example/",
        "http://bad.example.org/",
        "http://example/",
        "https://www.bbc.co.uk/",
        "http://shared.example/badge/",
        "http://shared.example/",
        "http://203.0.113.10/",
        "http://8.203.0.113.9.example/",
        "bad.example",
        "",
    ):
        assert listed.blocked(url) is None, url
    assert listed.ignored == 3  # com, prose, and localhost


def test_hundreds_of_thousands_of_lines_across_chunks(tmp_path: Path) -> None:
    names = [f"site-{n}.example{n % 7}.org" for n in range(300_000)]
    listed = _load(tmp_path, "\n".join([*names, *names[:1000]]))
    assert listed.entries == len(names)
    assert all(listed.blocked(f"http://{name}/") == name for name in names[::997])
    assert listed.blocked("http://site-300000.example1.org/") is None
    listed.write(tmp_path / "hashes.npy")
    again = DomainList.read(tmp_path / "hashes.npy")
    assert again.entries == listed.entries and again.blocked(f"http://www.{names[-1]}/") == names[-1]


def test_a_list_without_entries_is_an_error_that_names_it(tmp_path: Path) -> None:
    for text in ("", "# nothing yet\n", "some words\nmore words\n"):
        with pytest.raises(HerdError, match=r"'list\.txt'"):
            _load(tmp_path, text)
    with pytest.raises(HerdError, match=r"nowhere\.txt"):
        DomainList.load(["nowhere.txt"], tmp_path)
    with pytest.raises(HerdError, match="package:NAME==VERSION:FILE"):
        DomainList.load(["package:datatrove:domains"], tmp_path)


def _tar(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def test_reads_a_list_inside_an_archive_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    packages = tmp_path / "herd" / "packages"
    packages.mkdir(parents=True)
    with zipfile.ZipFile(packages / "lists-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("lists/readme.txt", "not.a.list")
        wheel.writestr("lists/all.tar.gz", _tar({"domains": b"bad.example\n", "urls": b"shared.example/bad\n"}))
    spec = "package:lists==1.0:lists/all.tar.gz"
    whole = DomainList.load([spec], tmp_path)
    assert whole.entries == 2 and whole.blocked("http://not.a.list/") is None
    assert DomainList.load([f"{spec}/domains"], tmp_path).entries == 1
    for place in (f"{spec}/absent", "package:lists==1.0:lists/absent"):
        with pytest.raises(HerdError, match="absent"):
            DomainList.load([place], tmp_path)
    with pytest.raises(HerdError, match="SHA-256"):
        DomainList.load([f"{spec}#sha256={'0' * 64}"], tmp_path)


def test_damaged_and_exploding_archives_are_errors_that_name_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _tar({"domains": b"".join(b"site-%d.example\n" % n for n in range(100_000))})
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "fake.zip").write_bytes(b"no archive")
    (tmp_path / "big.tgz").write_bytes(whole)
    for name in ("cut.tgz", "fake.zip"):
        with pytest.raises(HerdError, match=name):
            DomainList.load([name], tmp_path)
    monkeypatch.setattr("herd.data.listed_files.MAX_BYTES", 100_000)
    with pytest.raises(HerdError, match=r"big\.tgz.*100,000 bytes"):
        DomainList.load(["big.tgz"], tmp_path)


def test_domains_go_by_their_sums_and_parts_add_up_in_any_order() -> None:
    page = DomainCounts(documents=1, bytes=4_000, words=600)
    directory = DomainCounts(documents=1, bytes=4_000, words=600, personal=9, personal_documents=1)
    contact = DomainCounts(documents=1, bytes=4_000, words=600, personal=400, personal_documents=1)
    adult = DomainCounts(documents=1, bytes=4_000, words=600, dirty=12, dirty_documents=0)
    parts: list[dict[str, DomainCounts]] = []
    for _ in range(30):
        parts.append({"people.example": directory, "docs.example": page, "adult.example": adult, "": directory})
    parts += [{"docs.example": contact}, {"small.example": directory}]
    forth: dict[str, DomainCounts] = {}
    back: dict[str, DomainCounts] = {}
    for part in parts:
        merge(part, forth)
    for part in reversed(parts):
        merge(part, back)
    assert forth == back and forth["docs.example"].documents == 31
    found = verdicts(forth)
    # One page of contacts doesn't take the domain's other thirty with it, and few pages don't make a domain.
    assert {domain: verdict.rule for domain, verdict in found.items()} == {
        "adult.example": "domain_dirty_words",
        "people.example": "domain_personal_data",
    }
    assert found["people.example"].score == pytest.approx(2.25)
    assert not verdicts(forth, Thresholds(documents=31))
