"""Files made to do harm, one of each kind: refused in one line; nothing is run, waited for, or unpacked.

What random damage does is in `test_fuzz.py`; GGUF files of bytes written out are in `test_gguf.py`.
"""

import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile

import pytest
import torch

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.formats.gguf_file import read_gguf_file
from herd.model.formats.huggingface import read_huggingface, write_huggingface
from herd.model.formats.meta import read_meta, write_meta
from herd.model.formats.native import open_native, save_native, tensor_shapes
from herd.model.formats.torch_file import open_torch_file

CONFIG = ModelConfig(2, 32, 4, 2, 64, 304, 8, 8_192)
STATE = {name: torch.full(shape, 0.5) for name, shape in tensor_shapes(CONFIG).items()}
INDEX, FIRST = "model.safetensors.index.json", "model-00001-of-00004.safetensors"


def refused(read, path, problem):
    """What is said of a file: one line, that names it; with less than 50 MB."""
    tracemalloc.start()
    with pytest.raises(HerdError, match=problem) as caught:
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert str(path) in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 600


# Pickles of .pth files, written out by hand: what torch would need to be told to write


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind="torch\nFloatStorage", key="0", count=16):
    return b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"


def view(shape=(4, 4), strides=(4, 1), offset=0, **options):
    rest = b"\x89ccollections\nOrderedDict\n)Rt"
    place = storage(**options) + number(offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + rest + b"R"


def table(value):
    return b"\x80\x02}" + text("w") + value + b"s."


def packed(program, more=None, compression=zipfile.ZIP_STORED):
    """A file with that pickle and one record of 64 bytes."""
    stream, usual = io.BytesIO(), {"version": b"3\n", "byteorder": b"little", "data/0": b"\1" * 64}
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in {"data.pkl": program, **usual, **(more or {})}.items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


def without(data, name):
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as archive:
        for one in old.namelist():
            if not one.endswith(name):
                archive.writestr(one, old.read(one))
    return stream.getvalue()


def nested(levels):
    """A key that is a tuple of twice a tuple of twice a tuple: to hash it takes 2 ** levels steps."""
    doubled = b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(levels))
    return b"\x80\x02}K\x01\x85" + doubled + b"K\x01s."


BOMB = bytes(40_000_000)
DIRECTORY = bytes(11_000_000) + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 11_000_000, 0, 0)
GOOD = packed(table(view()))
PICKLES = {
    "eval": (packed(table(b"c__builtin__\neval\n(" + text("1") + b"tR")), r"calls __builtin__\.eval; herd .* runs n"),
    "2 GB of nothing": (packed(table(b"c__builtin__\nbytearray\n(" + number(2 * 10**9) + b"tR")), "calls .*bytearray"),
    "a tensor of 2 GB": (packed(table(b"ctorch\nFloatTensor\n(" + number(5 * 10**8) + b"tR")), r"calls torch\.FloatT"),
    "an object": (packed(table(b"ccollections\nCounter\n)\x81")), "operation NEWOBJ, which weights do not need"),
    "protocol 4": (packed(pickle.dumps({"w": 1}, 4)), "operation FRAME"),
    "a key that takes forever": (packed(nested(60)), "another table than one of names"),
    "no table": (packed(b"\x80\x02" + view() + b"."), "holds no table"),
    "no tensor": (packed(table(number(3))), "w is no tensor"),
    "no end": (packed(table(view())[:-1]), "its pickle is damaged"),
    "empty stack": (packed(b"\x80\x02."), r"its pickle is damaged \(IndexError\)"),
    "unknown memo": (packed(b"\x80\x02h\x07."), r"its pickle is damaged \(KeyError\)"),
    "integers": (packed(table(view(kind="torch\nLongStorage"))), r"holds a torch\.LongStorage; herd reads"),
    "no storage": (packed(table(b"(" + text("x") + b"tQ")), "refers to something that is no storage"),
    "record missing": (packed(table(view(key="7"))), "record data/7, which is missing"),
    "record elsewhere": (packed(table(view(key="../data.pkl"))), r"record data/\.\./data\.pkl, which is missing"),
    "record too short": (packed(table(view((8, 4), count=32))), "w needs 128 bytes, record data/0 has 64"),
    "endless record": (packed(table(view(count=2**62))), "w needs"),
    "shape beyond storage": (packed(table(view((5, 4)))), "shape and strides of w do not fit the 16 numbers"),
    "strides beyond storage": (packed(table(view(strides=(5, 1)))), "shape and strides of w do not fit"),
    "offset beyond storage": (packed(table(view(offset=1))), "shape and strides of w do not fit"),
    "negative offset": (packed(table(view((2,), (1,), -4))), "shape and strides of w do not fit"),
    "negative stride": (packed(table(view((4,), (-1,), 3))), "shape and strides of w do not fit"),
    "negative size": (packed(table(view((-4, -4)))), "shape and strides of w do not fit"),
    "a terabyte of one number": (packed(table(view((2**20, 2**20), (0, 0)))), "shape and strides of w do not fit"),
    "rows that share": (packed(table(view((13, 4), (1, 1)))), "shape and strides of w do not fit"),
    "dimensions": (packed(table(view((1,) * 40, (1,) * 40))), "shape and strides of w do not fit"),
    "size beyond 64 bits": (packed(table(view((2**64,), (1,)))), "shape and strides of w do not fit"),
    "bomb": (packed(table(view()), {"data/1": BOMB}, zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
    "pickled bomb": (packed(b"\x80\x02" + b"N" * 5_000_000 + b"."), "data.pkl has 5,000,003 bytes; at most 2,000,000"),
    "big-endian": (packed(table(view()), {"byteorder": b"big"}), "not little-endian"),
    "a long directory": (DIRECTORY, "zip directory has 11,000,000 bytes; at most 10,000,000"),
    "no pickle": (without(GOOD, "data.pkl"), "0 records data.pkl"),
    "two pickles": (packed(table(view()), {"x/data.pkl": b""}), "2 records data.pkl"),
    "before torch 1.6": (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02}.", "no zip archive, as torch writes"),
    "empty": (b"", "no zip archive"),
    "a flipped bit": (GOOD.replace(b"\1" * 64, b"\1" * 63 + b"\2"), "record data/0 are not what its CRC says"),
    "a flipped bit of the pickle": (GOOD.replace(b"K\x04", b"K\x05").replace(b"_v2", b"_v3"), "are not what its CRC"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_a_pth_of_more_than_tensors_is_refused(name, tmp_path):
    data, problem = PICKLES[name]
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(data)
    refused(lambda path: dict(open_torch_file(path)), path, problem)


def test_the_pth_that_these_are_made_of_is_read(tmp_path):
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(GOOD)
    ours, theirs = open_torch_file(path), torch.load(path, weights_only=True)
    assert torch.equal(ours["w"], theirs["w"]) and ours["w"].shape == (4, 4)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pth_is_not_run(protocol, zipped, tmp_path):
    witness = tmp_path / "witness"

    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    harm = pickle.dumps({"norm.weight": Harm()}, protocol)
    write_meta(tmp_path, CONFIG, STATE, None, torch.float32)
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(packed(harm) if zipped else harm)
    for read in (lambda _: read_meta(tmp_path), open_torch_file):
        refused(read, path, "system; herd reads tensors and runs nothing|which weights do not need|no zip archive")
    assert not witness.exists()
    pickle.loads(harm)
    assert witness.exists()  # it would have


# Things that are no files, in the place of each file of each format


def models(folder):
    """A model in each format; for each of its files how it is read."""
    write_huggingface(folder / "hf", CONFIG, STATE, None, torch.float32)
    write_huggingface(folder / "shards", CONFIG, STATE, None, torch.float32, shard_bytes=40_000)
    write_meta(folder / "meta", CONFIG, STATE, None, torch.float32, 2)
    save_native(folder / "herd", CONFIG, STATE)
    assert (folder / "shards" / FIRST).exists()
    return [
        (read_huggingface, folder / "hf" / "config.json"),
        (read_huggingface, folder / "hf" / "model.safetensors"),
        (read_huggingface, folder / "shards" / FIRST),
        (read_meta, folder / "meta" / "params.json"),
        (read_meta, folder / "meta" / "consolidated.00.pth"),
        (open_native, folder / "herd" / "config.json"),
        (open_native, folder / "herd" / "model.safetensors"),
    ]


def gguf(folder):
    return read_gguf_file(folder / "model.gguf")


@pytest.mark.parametrize(
    ("thing", "problem"),
    [
        (os.mkfifo, "not a file"),
        (os.mkdir, "not a file"),
        (lambda path: path.symlink_to(path.name), "can't be opened|missing"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
        (lambda path: path.symlink_to("nowhere"), "missing"),
        (lambda path: None, "missing"),
        (lambda path: path.touch(), "not a whole|not valid JSON|no zip archive"),
    ],
    ids=["pipe", "folder", "loop of links", "endless", "link to nothing", "missing", "empty"],
)
def test_what_is_no_file_is_said_so(thing, problem, tmp_path):
    for read, path in models(tmp_path):
        path.unlink()
        thing(path)
        refused(lambda path, read=read: read(path.parent), path, problem)
        shutil.rmtree(path.parent)
        models(tmp_path)  # for the next
    path = tmp_path / "model.gguf"
    thing(path)
    refused(lambda path: gguf(path.parent), path, f"{problem}|it is empty")


def index(folder, change):
    write_huggingface(folder, CONFIG, STATE, None, torch.float32, shard_bytes=40_000)
    values = json.loads((folder / INDEX).read_text())
    change(values)
    (folder / INDEX).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "named", "problem"),
    [
        (lambda v: v["weight_map"].update({"model.embed_tokens.weight": INDEX}), "", "places elsewhere|not a whole"),
        (lambda v: v["weight_map"].update({"model.norm.weight": "circle"}), "circle", "can't be opened"),
        (lambda v: v["weight_map"].update({"model.norm.weight": "gone"}), "gone", "missing"),
        (lambda v: v["weight_map"].update({"model.norm.weight": "../x"}), INDEX, "'../x' leads out of the folder"),
        (lambda v: v["weight_map"].update({"model.norm.weight": "a\0b"}), "", "can't be opened"),
        (lambda v: v["weight_map"].update({"x": FIRST}), FIRST, "no tensor x"),
        (lambda v: v.update(weight_map=v), INDEX, "not valid JSON"),
        (lambda v: v.update(weight_map=[FIRST]), INDEX, "'weight_map' is missing or not a table"),
        (lambda v: v.update(weight_map={f"{n}": f"{n}" for n in range(20_000)}), INDEX, "names 20,000 files; at most"),
    ],
    ids=["itself", "circle", "gone", "out", "no name", "more", "of itself", "list", "many"],
)
def test_an_index_that_leads_nowhere(change, named, problem, tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    try:
        index(tmp_path, change)
    except ValueError:  # a table in itself: as deep as JSON can be written
        (tmp_path / INDEX).write_text('{"weight_map": ' * 100_000 + "}" * 100_000)
    with pytest.raises(HerdError, match=problem) as caught:
        read_huggingface(tmp_path)
    assert named in str(caught.value) and str(tmp_path) in str(caught.value) and str(caught.value).isprintable()


def test_a_shard_of_another_model_or_place_is_named(tmp_path):
    index(tmp_path, lambda values: None)
    names = sorted(path.name for path in tmp_path.glob("model-*"))
    shutil.copy(tmp_path / names[0], tmp_path / names[1])
    refused(lambda _: read_huggingface(tmp_path), tmp_path / names[1], f"holds .*, which {INDEX} places elsewhere")


def header(value, body=b"\0" * 64):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(data).to_bytes(8, "little") + data + body


def entry(shape=(4, 4), offsets=(0, 64), dtype="F32"):
    return {"norm.weight": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


SAFETENSORS = {
    "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header of 99 MB": (99_000_000).to_bytes(8, "little") + b"{}",
    "a header past the end": header(entry())[:40],
    "half a length": b"\1\0\0",
    "a deep header": header(b'{"a":' * 100_000),
    "no table": header([1, 2]),
    "offsets beyond the file": header(entry(offsets=(0, 2**40), shape=(2**38,))),
    "offsets backwards": header(entry(offsets=(64, 0))),
    "negative offsets": header(entry(offsets=(-64, 0))),
    "a shape larger than its bytes": header(entry((2**20, 2**20))),
    "a shape beyond 64 bits": header(entry((2**40, 2**40))),
    "a shape of no numbers": header(entry((4.5, 2))),
    "bytes that nobody has": header(entry(), b"\0" * 100),
    "shared bytes": header(entry() | {"b": entry()["norm.weight"]}),
    "an unknown dtype": header(entry(dtype="F3")),
    "cut": header(entry())[:-1],
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_hostile_safetensors_file(name, tmp_path):
    save_native(tmp_path, CONFIG, STATE)
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[name])
    refused(lambda _: open_native(tmp_path), path, "not a whole safetensors file")


def test_truncated_files_are_refused_wherever_they_end(tmp_path):
    for read, path in models(tmp_path):
        data = path.read_bytes()
        for length in {0, 1, 7, 8, 9, len(data) // 2, len(data) - 65, len(data) - 2}:
            path.write_bytes(data[:length])
            refused(lambda path, read=read: read(path.parent), path, "not a whole|not valid JSON|not a file of weights")
        path.write_bytes(data)
        read(path.parent)


def test_gguf_tensors_that_share_bytes_or_stand_crooked(tmp_path):
    def tensor(name, offset):
        return struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, 16, 0, offset)

    for offsets, problem in (((0, 32), "a and b share bytes"), ((0, 72), "b begins at 72, not at a multiple of 32")):
        head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + tensor(b"a", offsets[0]) + tensor(b"b", offsets[1])
        path = tmp_path / "model.gguf"
        path.write_bytes(head + bytes(-len(head) % 32) + bytes(256))
        refused(read_gguf_file, path, problem)


@pytest.mark.parametrize("value", ["1" + "0" * 5_000, "NaN", "-1", "0", "1e400", '"32"', "[32]", "true", "null"])
def test_numbers_that_are_none(value, tmp_path):
    """One of a config's sizes, in every format that keeps it as JSON."""
    for (read, path), key in zip(models(tmp_path), ("hidden_size", "", "", "dim", "", "dim", ""), strict=True):
        if key:
            values = json.loads(path.read_text()) | {key: "<here>"}
            path.write_text(json.dumps(values).replace('"<here>"', value))
            refused(lambda path, read=read: read(path.parent), path, f"{key} is .*; expected a whole|not valid JSON")
