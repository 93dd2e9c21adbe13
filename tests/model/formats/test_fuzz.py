"""Over a thousand damaged model files in every format: each is read, or refused in one line that names it.

The files are made and opened by a worker, this file as its program, which may not allocate more than a model's worth of
memory and has seconds for a file. Where it dies or hangs, the file at which it did so is counted, and a new worker goes
on behind it. Mutations are drawn from the number of the file, so that one of them can be looked at by itself:
`python tests/model/formats/test_fuzz.py FOLDER NUMBER NUMBER+1`.
"""

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from herd.console import HerdError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.formats.gguf import read_gguf
from herd.model.formats.gguf_write import write_gguf
from herd.model.formats.huggingface import read_huggingface, write_huggingface
from herd.model.formats.meta import read_meta, write_meta
from herd.model.formats.native import open_native, save_native, tensor_shapes
from herd.model.formats.weights import stored
from herd.model.tokenizer import train_tokenizer

FILES = 1_400
SECONDS_A_FILE = 10
BYTES_A_FILE = 100_000_000  # that a worker may have beyond what it has at its start
VOCABULARY = 304
CONFIG = ModelConfig(2, 32, 4, 2, 64, VOCABULARY, 8, 131_072, rope_scaling=RopeScaling())
FORMATS = ("hf", "hf-shards", "herd", "meta-1", "meta-2", "gguf-F16", "gguf-Q8_0", "gguf-Q4_0")
FAILURES = ("unclear", "other exception", "over memory", "hang", "crash")


def write_models(folder):
    """A small valid model in each format."""
    draw = torch.Generator().manual_seed(0)
    state = {
        name: (torch.randn(shape, generator=draw) * 0.1 + (1.0 if "norm" in name else 0.0)).bfloat16()
        for name, shape in tensor_shapes(CONFIG).items()
    }
    tokenizer = train_tokenizer(["some text to merge, some more text to merge, and other longer texts of words"], 304)
    write_huggingface(folder / "hf", CONFIG, state, None, torch.bfloat16)
    write_huggingface(folder / "hf-shards", CONFIG, state, None, torch.bfloat16, shard_bytes=30_000)
    save_native(folder / "herd", CONFIG, state)
    for ranks in (1, 2):
        write_meta(folder / f"meta-{ranks}", CONFIG, state, None, torch.bfloat16, ranks)
    for kind in ("F16", "Q8_0", "Q4_0"):
        (folder / f"gguf-{kind}").mkdir()
        write_gguf(folder / f"gguf-{kind}" / "model.gguf", CONFIG, state, tokenizer, kind, "small")


def read(form, folder):
    """Everything that a model's files hold."""
    if form.startswith("gguf"):
        config, weights = read_gguf(folder / "model.gguf")[:2]
    else:
        reader = read_huggingface if form.startswith("hf") else read_meta if form.startswith("meta") else open_native
        config, weights = reader(folder)
    promised = stored(weights)
    assert promised.keys() == tensor_shapes(config).keys()
    for name, value in weights.items():
        assert (tuple(value.shape), value.dtype) == promised[name][:2]
        value.float().sum()


# Mutations: each changes a folder, drawing from `draw`


def of(draw, folder, *ends):
    """One of the files with such an ending."""
    return draw.choice(sorted(path for path in folder.iterdir() if path.name.endswith(ends)))


WEIGHTS = (".safetensors", ".pth", ".gguf")
EXTREMES = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
VALUES = (  # as JSON text
    *map(str, EXTREMES), "1000", "4096", "100000", "1" + "0" * 5_000,
    "1e400", "-1e400", "NaN", "Infinity", "1.5", "true", "null", '""', '"x"',
    '"\\ud800"', '"a\\u0000b"', '"../x"', '"a\\nb"', "[]", "{}", "[[1]]", '{"a": 1}', "[" * 3_000 + "]" * 3_000,
    json.dumps("x" * 9_000), '"F64"', '"F8_E4M3"', "[1, 2, 3]", "[0, 100]", "[100, 0]", f"[0, {2**63}]",
)  # fmt: skip


def some_bytes(draw, path, start, end):
    """Flipped bits, replaced bytes and whole numbers, between two places."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(start, min(end, len(data)))
        if draw.random() < 0.4:
            width = draw.choice((2, 4, 8))
            number = (draw.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(width, "little")
            data[at : at + width] = number[: len(data) - at]
        else:
            data[at] = draw.choice((data[at] ^ (1 << draw.randrange(8)), draw.randrange(256), 0, 255))
    path.write_bytes(data)


def header_end(path):
    """Where the numbers of a file of weights begin."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return 8 + int.from_bytes(data[:8], "little")
    return data.index(b"PK\x03\x04", 4) if path.suffix == ".pth" else data.rindex(b"output.weight\x02") + 64


def header_bytes(draw, folder):
    path = of(draw, folder, *WEIGHTS)
    end = header_end(path)
    if path.suffix == ".pth" and draw.random() < 0.5:  # the directory at the end is a header too
        data = path.read_bytes()
        return some_bytes(draw, path, data.index(b"PK\x01\x02"), len(data))
    if path.suffix == ".gguf":  # most of the header are the texts of a vocabulary
        return some_bytes(draw, path, *draw.choice(((0, 64), (0, 1_400), (end - 1_500, end))))
    return some_bytes(draw, path, 0, draw.choice((16, end)))


def cut(draw, folder):
    path = of(draw, folder, *WEIGHTS, ".json")
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(draw.choice((min(200, len(data)), len(data))))])


def json_bytes(draw, folder):
    path = of(draw, folder, ".json")
    some_bytes(draw, path, 0, path.stat().st_size)


def change(draw, table):
    """A table with a value somewhere in it replaced, or with a key renamed, removed or there twice; as text."""
    places = [((), table)]
    for place, value in places:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        places += [((*place, key), inner) for key, inner in items]
    place, _ = draw.choice(places[1:])
    within = table
    for key in place[:-1]:
        within = within[key]
    action = draw.choice(("value",) * 6 + ("rename", "remove", "twice"))
    if isinstance(within, list) or action == "value":
        within[place[-1]] = "<here>"
        return json.dumps(table).replace('"<here>"', draw.choice(VALUES), 1)
    value = within.pop(place[-1])
    if action == "rename":
        within[draw.choice(("x", "", "lm_head.weight", "a\nb", "x" * 5_000, *within))] = value
    elif action == "twice":
        within["<here>"], within[place[-1]] = draw.choice((1, None, value)), value
    return json.dumps(table).replace("<here>", str(place[-1]))


def json_values(draw, folder):
    path = of(draw, folder, ".json")
    path.write_text(change(draw, json.loads(path.read_text())))


def safetensors_values(draw, folder):
    """A header that is whole but says something else."""
    path = of(draw, folder, ".safetensors")
    data, end = path.read_bytes(), header_end(path)
    text = change(draw, json.loads(data[8:end])).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def records(path, changed):
    """Write a zip of records anew, with right CRCs, after `changed` had its hands on them."""
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    kept = changed(found) or found
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in kept.items():
            archive.writestr(name, data)


def pickled_bytes(draw, folder):
    """A damaged pickle whose CRC is right."""

    def changed(found):
        name = next(name for name in found if name.endswith("data.pkl"))
        data = bytearray(found[name])
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(data))
            data[at] = draw.choice((data[at] ^ (1 << draw.randrange(8)), draw.randrange(256), 0, 255, *b"()Rtq}hcQ."))
        if draw.random() < 0.3:  # a number becomes another
            at = draw.choice([at for at in range(len(data) - 1) if data[at] in b"KM"])
            data[at : at + 2 + (data[at] == ord("M"))] = b"\x8a\x09" + draw.choice(EXTREMES).to_bytes(
                9, "little", signed=True
            )
        return found | {name: bytes(data)}

    records(of(draw, folder, ".pth"), changed)


def zip_records(draw, folder):
    """Records removed, renamed, exchanged, shortened, compressed."""

    def changed(found):
        one, other = draw.sample(sorted(found), 2)
        action = draw.choice(("remove", "rename", "exchange", "shorten", "empty", "huge"))
        if action == "exchange":
            return found | {one: found[other], other: found[one]}
        value = found.pop(one)
        if action == "rename":
            found[draw.choice(("x", "a/data.pkl", "../x", other + "x"))] = value
        elif action != "remove":
            found[one] = {"shorten": value[: len(value) // 2], "empty": b"", "huge": value * 50}[action]
        return found

    path = of(draw, folder, ".pth")
    records(path, changed)
    if draw.random() < 0.2:
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in found.items():
                archive.writestr(name, data)
        path.write_bytes(packed.getvalue())


def body_bytes(draw, folder):
    path = of(draw, folder, *WEIGHTS)
    some_bytes(draw, path, header_end(path), path.stat().st_size)


def body_runs(draw, folder):
    """A stretch of the numbers filled, left out, or there twice."""
    path = of(draw, folder, *WEIGHTS)
    data, start = path.read_bytes(), header_end(path)
    at = draw.randrange(start, len(data))
    size = min(draw.choice((1, 16, 512, 10_000)), len(data) - at)
    run = draw.choice((b"", b"\0" * size, b"\xff" * size, data[at : at + size] * 2))
    path.write_bytes(data[:at] + run + data[at + size :])


def other_things(draw, folder):
    """A folder, a pipe, a loop of links, an endless device or nothing where a file should be; files exchanged."""
    path = of(draw, folder, *WEIGHTS, ".json")
    other = of(draw, folder, *WEIGHTS, ".json")
    saved = path.read_bytes()
    path.unlink()
    match draw.choice(("gone", "empty", "folder", "pipe", "loop", "endless", "another", "exchanged")):
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case "endless":
            path.symlink_to("/dev/zero")
        case "another":
            path.write_bytes(bytes(draw.randrange(256) for _ in range(draw.randrange(3_000))))
        case "exchanged" if other.exists():
            path.write_bytes(other.read_bytes())
            other.write_bytes(saved)


def index_names(draw, folder):
    """An index that leads to itself, out of the folder, in a circle, or to what is no file."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    places = index["weight_map"]
    name, other = draw.sample(sorted(places), 2)
    match draw.choice(("itself", "circle", "gone", "out", "odd", "swap", "all", "more")):
        case "itself":
            places[name] = path.name
        case "circle":
            (folder / "circle.safetensors").symlink_to("circle.safetensors")
            places[name] = "circle.safetensors"
        case "gone":
            places[name] = "model-00009-of-00009.safetensors"
        case "out":
            places[name] = draw.choice(("../model.safetensors", "/dev/zero", "..", "x/../../y"))
        case "odd":
            places[name] = draw.choice(("", ".", "a\0b", "x" * 5_000, "\ud800", "a\nb", "pipe"))
            os.mkfifo(folder / "pipe")
        case "swap":
            places[name], places[other] = places[other], places[name]
        case "all":
            index["weight_map"] = dict.fromkeys(places, places[name])
        case "more":
            places |= {f"extra{number}": f"{number}.safetensors" for number in range(20_000)}
    path.write_text(json.dumps(index))


HEADER, BODY, PLACE = "header", "body", "place"
ALL = [(HEADER, header_bytes)] * 3 + [(BODY, body_bytes), (BODY, body_runs), (PLACE, other_things)]
JSON = [(HEADER, json_values)] * 2 + [(HEADER, json_bytes), (PLACE, cut)]
TENSORS = [(HEADER, safetensors_values)] * 3
MUTATIONS = {
    "hf": ALL + JSON + TENSORS,
    "hf-shards": ALL + JSON + TENSORS + [(PLACE, index_names)] * 2,
    "herd": ALL + JSON + TENSORS,
    "meta-1": ALL + JSON + [(HEADER, pickled_bytes)] * 4 + [(HEADER, zip_records)] * 2,
    "meta-2": ALL + JSON + [(HEADER, pickled_bytes)] * 2 + [(HEADER, zip_records)],
    **{form: [*ALL, (PLACE, cut)] for form in ("gguf-F16", "gguf-Q8_0", "gguf-Q4_0")},
}


def drawn(number):
    """What is done in which format: all of a format's mutations in turn."""
    form = FORMATS[number % len(FORMATS)]
    where, mutation = MUTATIONS[form][number // len(FORMATS) % len(MUTATIONS[form])]
    return form, where, mutation


# The worker


def work(base, first, last):
    """Make and read the files from `first` to before `last`; a line for each, flushed before the next is begun."""
    os.chdir(base)
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    limit = int(data.split()[1]) * 1024 + BYTES_A_FILE
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError()))
    for number in range(first, last):
        form, _, mutation = drawn(number)
        folder = base / "now"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base / "good" / form, folder)
        mutation(random.Random(number), folder)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
        signal.alarm(SECONDS_A_FILE)
        try:
            outcome, text = attempt(form, folder)
        finally:
            signal.alarm(0)
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with (base / "outcomes").open("a") as stream:
            stream.write(json.dumps([number, outcome, text]) + "\n")


def attempt(form, folder):
    try:
        read(form, folder)
    except HerdError as error:
        text = str(error)
        clear = str(folder) in text and len(text) < 600 and text.isprintable()
        return ("refused" if clear else "unclear"), text[:1_000]
    except TimeoutError:
        return "hang", ""
    except MemoryError:
        return "over memory", ""
    except BaseException as error:
        memory = isinstance(error, RuntimeError) and "allocate" in str(error)
        return ("over memory" if memory else "other exception"), repr(error)[:1_000]
    return "read", ""


# The test


def outcomes_of(base, first, last):
    """Outcome and text by number of the file, from as many workers as it takes."""
    done = {}
    while first < last:
        (base / "outcomes").write_text("")
        command = [sys.executable, __file__, str(base), str(first), str(last)]
        with (base / "stderr").open("w") as stderr:
            worker = subprocess.Popen(command, stderr=stderr)
        hung = not ends(worker, base / "outcomes")
        for line in (base / "outcomes").read_text().splitlines():
            number, *done[int(json.loads(line)[0])] = json.loads(line)
            first = number + 1
        if first < last:
            stderr = (base / "stderr").read_text()[-600:]
            done[first] = ["hang", "killed"] if hung else ["crash", f"status {worker.wait()}: {stderr}"]
            first += 1
    return done


def ends(worker, progress):
    """Wait for a worker as long as it makes progress; otherwise kill it, which ends what no alarm interrupts."""
    seen, since = 0, time.monotonic()
    while time.monotonic() - since < 3 * SECONDS_A_FILE:
        try:
            worker.wait(0.5)
            return True
        except subprocess.TimeoutExpired:
            if (size := progress.stat().st_size) != seen:
                seen, since = size, time.monotonic()
    worker.kill()
    worker.wait()
    return False


def table(done):
    """Outcomes by format and mutation, as text."""
    columns = ("read", "refused", *FAILURES)
    counted = Counter()
    for number, (outcome, _) in done.items():
        form, where, mutation = drawn(number)
        counted.update({((form, where, mutation.__name__), outcome): 1, (("total", where, ""), outcome): 1})
        counted.update({(("total", "", ""), outcome): 1})
    rows = sorted({row for row, _ in counted}, key=lambda row: (row[0] == "total", row))
    lines = [f"{'format':<10} {'where':<7} {'mutation':<19}" + "".join(f"{name:>16}" for name in ("files", *columns))]
    for row in rows:
        numbers = [counted[row, column] for column in columns]
        cells = "".join(f"{number:>16}" for number in (sum(numbers), *numbers))
        lines.append(f"{row[0]:<10} {row[1]:<7} {row[2]:<19}{cells}")
    return "\n".join(lines)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory can't be bounded")
def test_damaged_files_are_read_or_refused(tmp_path, capsys):
    write_models(tmp_path / "good")
    for form in FORMATS:
        read(form, tmp_path / "good" / form)
    started = time.monotonic()
    done = outcomes_of(tmp_path, 0, FILES)
    with capsys.disabled():
        print(f"\n{table(done)}\n{len(done)} damaged files in {time.monotonic() - started:.0f} s")
    assert done.keys() == set(range(FILES))
    assert sum(drawn(number)[1] == HEADER for number in done) >= FILES / 2
    failed = {(number, *drawn(number)[::2], *rest) for number, rest in done.items() if rest[0] in FAILURES}
    assert not failed, sorted(failed, key=str)[:10]
    assert sum(outcome == "refused" for outcome, _ in done.values()) > FILES / 2


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
