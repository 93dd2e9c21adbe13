"""`herd import`: a file in, a member that generates and chats out; nothing of another run is overwritten."""

import io
import json
import shutil
from pathlib import Path

import pytest

from herd.cli import main
from herd.run import import_model, member_artifact


@pytest.fixture(scope="module")
def folder(gguf_fields, gguf_tensors, write_gguf, tmp_path_factory):
    """A folder with two files of open weights and a run of the first."""
    folder = tmp_path_factory.mktemp("import")
    for name, pre in (("Tiny Model.Q8_0.gguf", "smollm"), ("other.gguf", "llama-bpe")):
        fields = gguf_fields(pre)
        write_gguf(folder / name, fields, gguf_tensors(len(fields["tokenizer.ggml.tokens"])), "Q8_0")
    import_model(str(folder / "Tiny Model.Q8_0.gguf"), out=folder / "runs" / "tiny-model-q8-0")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_a_file_becomes_a_run_of_its_own(here, capsys):
    run = Path("runs/tiny-model-q8-0")
    artifact = member_artifact(run, "tiny-model-q8-0")
    assert artifact.stage == "adopt-tiny-model-q8-0"
    assert main(["import", "Tiny Model.Q8_0.gguf"]) == 0  # again: nothing to do
    assert "herd chat --run runs/tiny-model-q8-0 --member tiny-model-q8-0" in capsys.readouterr().out
    assert member_artifact(run, "tiny-model-q8-0").content == artifact.content
    ledger = [json.loads(line) for line in (run / "evidence.jsonl").read_text().splitlines()]
    assert any(json.dumps(row).count("tiny-model-q8-0.parameters") for row in ledger)
    for verb in (
        ["status"],
        ["status", "--verify"],
        ["generate", "--member", "tiny-model-q8-0", "--max-tokens", "3", "a"],
    ):
        assert main([*verb, "--run", str(run)]) == 0


def test_another_file_under_the_name_is_refused(here, capsys):
    assert main(["import", "other.gguf", "--name", "tiny-model-q8-0"]) == 1
    assert "another run is here; choose another --name or --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nothing.gguf"], "nothing.gguf: there is no such file or folder"),
        (["package:requests"], "'package:requests': expected package:NAME==VERSION#sha256=DIGEST"),
        (["other.gguf", "--name", "Über Model"], "'Über Model' is not a member's name"),
        (["damaged.gguf"], "not a whole GGUF file"),
    ],
    ids=["missing", "package", "name", "damaged"],
)
def test_what_cannot_be_imported_is_named_and_leaves_the_name_free(arguments, problem, here, capsys):
    (here / "damaged.gguf").write_bytes((here / "other.gguf").read_bytes()[:5_000])
    assert main(["import", *arguments]) == 1
    assert problem in capsys.readouterr().err
    if arguments[0] == "damaged.gguf":
        shutil.copy(here / "other.gguf", here / "damaged.gguf")
        assert main(["import", "damaged.gguf"]) == 0


def test_chat_takes_turns_by_the_members_template(here, monkeypatch, capsys):
    """The prompt of the second turn holds the first as ChatML messages, not a transcript."""
    from herd.infer.engine import Engine

    seen = []
    stream = Engine.stream_tokens

    def spy(self, prompt, sampling):
        seen.append(self.tokenizer.decode(prompt))
        return stream(self, prompt, sampling)

    monkeypatch.setattr(Engine, "stream_tokens", spy)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello there\nand now?\n\n"))
    run = ["--run", "runs/tiny-model-q8-0"]
    assert main(["chat", "--member", "tiny-model-q8-0", "--max-tokens", "5", *run]) == 0
    assert seen[0] == "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    assert seen[1].startswith("<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n")
    assert seen[1].endswith("<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n")
    assert capsys.readouterr().out.count("tiny-model-q8-0: ") == 2
