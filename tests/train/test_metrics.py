"""A run's rows: once each whatever killed it, the same for equal runs, and where else they go."""

import json
import math
import struct
import sys
import types
from pathlib import Path

import pytest
import torch

from herd.artifact import Draft
from herd.console import HerdError
from herd.train.hardware import measured_peak
from herd.train.loop import TrainState
from herd.train.metrics import Log, bits_per_byte, read_rows, speed_row
from herd.train.record import write_training

CPU = torch.device("cpu")


def write(folder: Path, steps: range, **settings) -> None:
    with Log(folder, after=steps.start - 1, **settings) as log:
        for step in steps:
            log.write(step, {"loss": 5 / step, "tokens": 64 * step}, {"tokens_per_second": 1000.0 + step})


def test_a_resumed_run_has_the_bytes_of_an_undisturbed_one(tmp_path):
    write(tmp_path / "whole", range(1, 11))
    write(tmp_path / "killed", range(1, 8))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as stream:
        stream.write('{"loss": 0.62')  # the process was killed while it wrote
    write(tmp_path / "killed", range(5, 11))  # the last checkpoint was of step 4
    for name in ("metrics.jsonl", "speed.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = read_rows(tmp_path / "killed" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rows[2] == {"step": 3, "loss": 5 / 3, "tokens": 192}


def test_a_run_from_the_beginning_starts_its_files_anew(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, range(1, 3))
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_rows_can_be_read_while_the_run_goes_on_and_ranks_without_a_folder_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, other = Log(tmp_path / "log"), Log(None, to=["wandb"])
    log.write(1, {"loss": 2.0})
    other.write(1, {"loss": 2.0})
    assert read_rows(tmp_path / "log" / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    assert (tmp_path / "log" / "speed.jsonl").read_text() == ""  # there was nothing to say
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    log.close()
    other.close()


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of TensorBoard's event files, and where earlier steps are purged: (step, "purge", 0)."""
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for file in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, start = file.read_bytes(), 0
        while start < len(data):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, start)
            event = events.Event.FromString(data[start + 12 : start + 12 + length])
            start += 16 + length
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            if event.session_log.status == events.SessionLog.START:
                found.append((event.step, "purge", 0.0))
    return found


def test_tensorboard_gets_values_and_speed_and_hides_what_is_trained_again(tmp_path):
    pytest.importorskip("tensorboardX")
    write(tmp_path, range(1, 4), to=["tensorboard"])
    first = scalars(tmp_path / "tensorboard")
    assert [(step, name) for step, name, _ in first if name == "loss"] == [(1, "loss"), (2, "loss"), (3, "loss")]
    assert [value for _, name, value in first if name == "tokens_per_second"] == [1001.0, 1002.0, 1003.0]
    assert "purge" not in {name for _, name, _ in first}
    write(tmp_path, range(3, 5), to=["tensorboard"])
    assert [step for step, name, _ in scalars(tmp_path / "tensorboard") if name == "purge"] == [3]


def test_wandb_resumes_the_run_that_it_began(tmp_path, monkeypatch):
    calls = []

    def init(**settings):
        run = types.SimpleNamespace(
            log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish")
        )
        calls.append(settings)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    write(tmp_path, range(1, 3), to=["wandb"], title="small: initial pre-training")
    write(tmp_path, range(2, 4), to=["wandb"], title="small: initial pre-training")
    started = [call for call in calls if isinstance(call, dict)]
    assert started[0] == started[1] and started[0]["resume"] == "allow"
    assert started[0]["name"] == "small: initial pre-training" and started[0]["id"]
    assert calls[1] == (1, {"loss": 5.0, "tokens": 64, "tokens_per_second": 1001.0})
    assert calls[3] == "finish"


@pytest.mark.parametrize(("where", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, where, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(HerdError, match=rf"compute.log: '{where}' needs .*pip install 'llm-herd\[{where}\]'"):
        Log(tmp_path, to=[where])


def test_speed_is_of_the_steps_it_is_told_and_mfu_of_all_ranks():
    row = speed_row([0.5, 0.2, 0.3], 2000, CPU, flops_per_token=6e6, peak=3e9, ranks=4)
    assert row["tokens_per_second"] == pytest.approx(2000)
    assert row["step_seconds_median"] == 0.3 and row["step_seconds_max"] == 0.5
    assert row["mfu"] == pytest.approx(2000 * 6e6 / (4 * 3e9))
    assert "mfu" not in speed_row([0.5], 2000, CPU)
    grown = bytearray(300_000_000)
    assert speed_row([0.5], 2000, CPU)["memory_bytes"] > len(grown)


def test_loss_in_bits_per_byte():
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)  # a byte drawn evenly
    assert bits_per_byte(2.0, 4.0) == pytest.approx(2.0 / math.log(2) / 4)


def test_a_peak_is_measured_once_in_a_process():
    peak = measured_peak(CPU, torch.float32)
    assert 1e8 < peak < 1e14
    assert measured_peak(CPU, torch.float32) == peak


def test_an_artifact_keeps_what_the_clock_said_apart_from_what_is_hashed(tmp_path):
    out = Draft(tmp_path / "draft", tmp_path / "work")
    out.folder.mkdir()
    write(out.work, range(1, 4))
    (out.work / "tensorboard").mkdir()
    (out.work / "tensorboard" / "events").write_bytes(b"x")
    write_training(out, TrainState([{"step": 3, "loss": 1.0}], 100, 5.0), {"steps": 3})
    recorded = sorted(str(p.relative_to(out.recorded)) for p in out.recorded.rglob("*") if p.is_file())
    assert recorded == ["speed.json", "speed.jsonl", "tensorboard/events"]
    assert json.loads((out.folder / "metrics.jsonl").read_text()) == {"step": 3, "loss": 1.0}
