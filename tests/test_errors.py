"""Bad input and bad disks: one line that says what to do, and nothing half-written under a final name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMOKE = (ROOT / "recipes" / "smoke.toml").read_text()


def herd(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "herd", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False, env=os.environ | environment
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a failed call, which must be the error; no traceback anywhere."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("herd: ")
    return last


def finished(run: Path) -> list[str]:
    return [p.parent.name for p in run.glob("*/manifest.json")]


def unfinished(run: Path) -> list[str]:
    """Folders under a final name without their marker, and files that were being written."""
    folders = [
        p.name for p in run.iterdir() if p.is_dir() and p.name != ".drafts" and not (p / "manifest.json").exists()
    ]
    return folders + [p.name for p in run.rglob(".*.*[0-9]") if p.is_file()]


def folder_recipe(path: Path, folder: str) -> Path:
    """The smoke recipe with a folder as its only source."""
    head, rest = SMOKE.split("[[data.source]]", 1)
    source = f'[[data.source]]\nkind = "folder"\nname = "mine"\npath = "{folder}"\n\n[data]\n'
    recipe = path / "recipe.toml"
    recipe.write_text(head + source + rest.split("[data]\n", 1)[1])
    return recipe


def test_a_wrong_key_is_named_with_the_file(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(SMOKE.replace("vocab_size", "vocab_sise"))
    line = one_line(herd("run", recipe, "--out", tmp_path / "run"))
    assert "mine.toml" in line and "tokenizer.vocab_sise" in line and "vocab_size" in line
    assert not (tmp_path / "run").exists()


def test_a_width_that_its_heads_do_not_divide_is_said_before_anything_is_trained(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(SMOKE.replace("size = { layers = 1, dim = 12 }", "size = { layers = 1, dim = 28 }"))
    line = one_line(herd("run", recipe, "--out", tmp_path / "run"))
    assert "member medium: size: 3 heads do not divide the width 28" in line
    assert not (tmp_path / "run").exists()


def test_a_missing_source_folder_is_named(tmp_path):
    line = one_line(herd("run", folder_recipe(tmp_path, "nowhere"), "--out", tmp_path / "run"))
    assert "nowhere" in line and "mine" in line
    assert finished(tmp_path / "run") == [] and unfinished(tmp_path / "run") == []


def test_an_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "texts").mkdir()
    one_line(herd("run", folder_recipe(tmp_path, "texts"), "--out", tmp_path / "run"))
    assert finished(tmp_path / "run") == [] and unfinished(tmp_path / "run") == []


def test_too_little_text_says_how_much_was_found_and_is_needed(tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(4):
        shutil.copy(ROOT / "README.md", tmp_path / "texts" / f"{i}.md")
    line = one_line(herd("run", folder_recipe(tmp_path, "texts"), "--out", tmp_path / "run"))
    assert "400" in line and "kB" in line
    assert [name.split("-")[0] for name in finished(tmp_path / "run")] == ["sources"]
    assert unfinished(tmp_path / "run") == []


def test_an_unknown_stage_lists_the_stages(tmp_path):
    line = one_line(herd("run", "recipes/smoke.toml", "--until", "pretrian", "--out", tmp_path / "run"))
    assert "pretrian" in line and "pretrain" in line


def test_only_a_stage_without_its_inputs_says_what_to_run(tmp_path):
    line = one_line(
        herd("run", "recipes/smoke.toml", "--only", "pretrain", "--member", "small", "--out", tmp_path / "run")
    )
    assert "--until" in line


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small)], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        line = one_line(herd("run", "recipes/smoke.toml", "--until", "shards", "--out", small / "run"))
        assert "disk is full" in line
        assert unfinished(small / "run") == []
        assert not list((small / "run" / ".drafts").glob("*.[0-9]*"))
        before = finished(small / "run")
        subprocess.run(["mount", "-o", "remount,size=60m", str(small)], check=True)
        assert herd("run", "recipes/smoke.toml", "--until", "shards", "--out", small / "run").returncode == 0
        assert set(before) < set(finished(small / "run"))
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_a_read_only_output_is_one_line(tmp_path):
    if os.geteuid() == 0:  # root writes anywhere, but not below a file or on a read-only mount
        target = tmp_path / "readonly"
        target.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(target)], capture_output=True, check=False
        ).returncode:
            pytest.skip("this machine does not let root mount a tmpfs")
        try:
            line = one_line(herd("run", "recipes/smoke.toml", "--out", target / "run"))
        finally:
            subprocess.run(["umount", str(target)], check=False)
    else:
        target = tmp_path / "readonly"
        target.mkdir(mode=0o500)
        line = one_line(herd("run", "recipes/smoke.toml", "--out", target / "run"))
    assert "may not be written" in line and "readonly" in line


def test_an_output_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    line = one_line(herd("run", "recipes/smoke.toml", "--out", tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in line and "not a directory" in line


def test_verbs_without_a_run_say_how_to_make_one(tmp_path):
    for verb in (("status",), ("members",), ("report",), ("generate", "--member", "small", "x")):
        assert "herd run" in one_line(herd(*verb, cwd=tmp_path, PYTHONPATH=str(ROOT / "src")))
