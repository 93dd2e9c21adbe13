"""The ledger: copying twice adds nothing, the newest claim counts, and a killed writer costs at most its own line."""

import contextlib
import json
from pathlib import Path

import pytest

from herd.artifact import Artifact, open_artifact, publish, stage_key
from herd.console import HerdError
from herd.evidence import LEDGER, Claim, Ledger, claims_of, write_claims

LOSS = Claim("small.loss", "held-out loss", 3.25, "nats/token", 40, "documents", 3.2, 3.3, 0.95, "bootstrap")
SPEED = Claim("small.speed", "training speed", 1234.5, "tokens/s")


def measured(run: Path, settings: str, *claims: Claim, timings: tuple[Claim, ...] = ()) -> Artifact:
    key = stage_key("measure", 1, {"name": settings}, {})
    with publish(run, "measure", key, {"inputs": {"model": "abc"}}, {"date": "2026-01-01"}) as draft:
        if claims:
            write_claims(draft.folder / "claims.json", claims)
        if timings:
            write_claims(draft.recorded / "claims.json", timings)
    return open_artifact(run / f"measure-{key[:12]}")


def lines(run: Path) -> list[str]:
    return (run / LEDGER).read_text(encoding="utf-8").split("\n")[:-1]


def test_claims_are_copied_once_with_where_they_come_from(tmp_path):
    artifact, ledger = measured(tmp_path, "a", LOSS, timings=(SPEED,)), Ledger(tmp_path)
    assert claims_of(artifact) == [LOSS, SPEED]
    assert [ledger.add(artifact, "herd run r.toml") for _ in range(3)] == [2, 0, 0]
    first, second = ledger.entries()
    assert (first.claim, second.claim) == (LOSS, SPEED)
    assert (first.artifact, first.content, first.inputs) == (artifact.path.name, artifact.content, {"model": "abc"})
    assert (first.command, first.recorded) == ("herd run r.toml", {"date": "2026-01-01"})
    assert all(json.loads(line)["schema"] == 1 for line in lines(tmp_path))


def test_an_artifact_without_claims_writes_nothing(tmp_path):
    assert Ledger(tmp_path).add(measured(tmp_path, "a"), "herd") == 0
    assert not (tmp_path / LEDGER).exists() and Ledger(tmp_path).latest() == {}


def test_going_back_to_an_older_artifact_makes_its_claim_the_latest_again(tmp_path):
    ledger = Ledger(tmp_path)
    old, new = measured(tmp_path, "old", LOSS), measured(tmp_path, "new", Claim(LOSS.id, LOSS.what, 3.1, LOSS.unit))
    assert ledger.add(old, "herd") == 1
    assert ledger.add(new, "herd") == 1
    assert ledger.latest()[LOSS.id].claim.value == 3.1
    assert [ledger.add(old, "herd"), ledger.add(old, "herd")] == [1, 0]
    assert ledger.latest()[LOSS.id].artifact == old.path.name
    assert len(ledger.entries()) == 3  # append-only: what was said before stays


def test_the_latest_claim_is_what_the_artifact_says_even_where_a_forced_run_returned_to_an_older_value(tmp_path):
    ledger = Ledger(tmp_path)
    for value in (3.25, 3.5, 3.25):
        ledger.add(measured(tmp_path, "a", Claim("small.loss", "held-out loss", value, "nats/token")), "herd")
        assert ledger.latest()["small.loss"].claim.value == value


def test_the_latest_entry_names_the_content_that_is_there(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(measured(tmp_path, "a", LOSS), "herd")
    again = measured(tmp_path, "a", LOSS, Claim("small.new", "a claim more", 1.0, "1"))
    ledger.add(again, "herd")
    assert {entry.content for entry in ledger.latest().values()} == {again.content}


@pytest.mark.parametrize("cut", [1, 7, 200])
def test_a_torn_last_line_is_cut_off_said_and_written_again(tmp_path, capsys, cut):
    artifact, ledger = measured(tmp_path, "a", LOSS, SPEED), Ledger(tmp_path)
    ledger.add(artifact, "herd")
    whole = (tmp_path / LEDGER).read_bytes()
    (tmp_path / LEDGER).write_bytes(whole[:-cut])
    assert [entry.claim for entry in ledger.entries()] == [LOSS]
    ledger.repair()
    assert f"warning: {tmp_path / LEDGER}: the last line was cut short" in capsys.readouterr().err
    assert ledger.add(artifact, "herd") == 1
    assert (tmp_path / LEDGER).read_bytes() == whole
    ledger.repair()
    assert capsys.readouterr().err == "" and (tmp_path / LEDGER).read_bytes() == whole


def test_a_line_torn_inside_a_letter_can_still_be_read_past(tmp_path):
    artifact, ledger = measured(tmp_path, "a", LOSS, Claim("b", "naïve", 1.0, "1")), Ledger(tmp_path)
    ledger.add(artifact, "herd")
    whole = (tmp_path / LEDGER).read_bytes()
    (tmp_path / LEDGER).write_bytes(whole[: whole.rindex("ï".encode()) + 1])
    assert [entry.claim for entry in ledger.entries()] == [LOSS]


def test_a_repair_that_fails_loses_no_whole_line(tmp_path, monkeypatch):
    """A kill or a full disk in the middle of a repair must not cost the evidence that was there."""
    ledger = Ledger(tmp_path)
    ledger.add(measured(tmp_path, "a", LOSS), "herd")
    with ledger.path.open("ab") as stream:
        stream.write(b'{"torn')

    def stop_after_truncating(path: Path, data: bytes) -> None:
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", stop_after_truncating)
    with contextlib.suppress(OSError):
        ledger.repair()
    assert [entry.claim for entry in ledger.entries()] == [LOSS]


@pytest.mark.parametrize(
    "damage",
    [b"{not json", b"[1, 2]", b"5", b'"text"', b'{"schema": 2}', b'{"schema": 1, "claim": {}}', b"\xff\xfe", b""],
)
def test_a_damaged_line_before_the_last_is_an_error_that_names_it(tmp_path, damage):
    ledger = Ledger(tmp_path)
    ledger.add(measured(tmp_path, "a", LOSS, SPEED), "herd")
    first, second = (tmp_path / LEDGER).read_bytes().splitlines()
    (tmp_path / LEDGER).write_bytes(b"\n".join([first, damage, second, b""]))
    with pytest.raises(HerdError) as caught:
        ledger.latest()
    assert str(caught.value).startswith(f"{tmp_path / LEDGER}:2: not a ledger entry") and "\n" not in str(caught.value)


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0c", "\n", "\r"])
def test_a_claim_may_hold_any_text(tmp_path, separator):
    """Texts come from documents and prompts; some of their characters count as line ends to str.splitlines."""
    claim, ledger = Claim("a.b", f"one{separator}two", 1.0, "1"), Ledger(tmp_path)
    assert ledger.add(measured(tmp_path, "a", claim), "herd") == 1
    assert ledger.latest()["a.b"].claim == claim
    assert ledger.add(measured(tmp_path, "a", claim), "herd") == 0


def test_twins_and_values_that_are_no_numbers_are_refused_when_written(tmp_path):
    with pytest.raises(ValueError, match=r"used twice: \['small\.loss'\]"):
        write_claims(tmp_path / "claims.json", [LOSS, LOSS])
    with pytest.raises(ValueError):
        write_claims(tmp_path / "claims.json", [Claim("a", "b", float("nan"), "1")])
    assert not (tmp_path / "claims.json").exists()
