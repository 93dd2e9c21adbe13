"""A member that several processes hold together: torchrun starts them, one prints."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from herd.deploy.talk import continue_text
from herd.model.config import ModelConfig
from herd.model.formats.native import save_native
from herd.model.generation import Sampling
from herd.model.tokenizer import train_tokenizer
from herd.model.transformer import Transformer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
import herd.cli
from herd.cli import main
herd.cli._member_and_tokenizer = lambda options: (Path(sys.argv[1], "model"), Path(sys.argv[1], "tokenizer"))
sys.exit(main(["generate", "--member", "tiny", "--temperature", "0", "--max-tokens", "12"]))
"""


def test_processes_of_torchrun_print_once_what_one_prints(tmp_path, capsys):
    tokenizer = train_tokenizer([Path(argparse.__file__).read_text()], 400)
    tokenizer.save(tmp_path / "tokenizer")
    torch.manual_seed(0)
    config = ModelConfig(3, 32, 2, 1, 48, 400, 16, 64, tied_embeddings=True)
    save_native(tmp_path / "model", config, Transformer(config).state_dict())
    (tmp_path / "generate.py").write_text(SCRIPT)
    continue_text(tmp_path / "model", tmp_path / "tokenizer", "def main(", Sampling(0.0, max_tokens=12))
    expected = capsys.readouterr().out
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(tmp_path / "generate.py"), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, input="def main(", capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
