"""Converting needs the memory of one tensor, not of the model: anonymous memory is watched while it is done.

Each conversion runs in a process of its own, this file as its program: a model of 338 MB in float32 whose weights are
made when they are asked for goes through a format and back. What is mapped from files is not counted: the system takes
it back when it likes.
"""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from herd.model.config import ModelConfig
from herd.model.formats.gguf import read_gguf
from herd.model.formats.gguf_write import write_gguf
from herd.model.formats.huggingface import read_huggingface, write_huggingface
from herd.model.formats.meta import read_meta, write_meta
from herd.model.formats.native import open_native, save_native, tensor_shapes
from herd.model.formats.weights import Stored, Weights
from herd.model.tokenizer import train_tokenizer

VOCABULARY = 4_096
CONFIG = ModelConfig(5, 1_024, 16, 4, 4_096, VOCABULARY, 64, 8_192)
LARGEST = VOCABULARY * CONFIG.dim * 4  # bytes of a tensor in float32
SPARE = 48_000_000  # buffers, and what the allocator keeps of what was freed
FORMATS = ("huggingface", "huggingface in shards", "meta", "meta on 4 ranks", "gguf", "herd")


def made() -> Weights:
    """Random weights, each the same whenever it is asked for."""

    def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(len(name)))

    shapes = {name: tuple(shape) for name, shape in tensor_shapes(CONFIG).items()}
    return Weights({n: Stored(at, torch.float32, lambda n=n, at=at: tensor(n, at)) for n, at in shapes.items()})


def there_and_back(way: str, folder: Path) -> None:
    """Write and read; the memory of both is watched and printed."""
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in Path(re.__file__).parents[1].glob("*.py")]
    state, tokenizer, half = made(), train_tokenizer(texts, VOCABULARY), torch.bfloat16
    with watched():
        if way.startswith("huggingface"):
            write_huggingface(folder, CONFIG, state, tokenizer, half, 50_000_000 if "shards" in way else 10**10)
            found = read_huggingface(folder)[1]
        elif way.startswith("meta"):
            write_meta(folder, CONFIG, state, tokenizer, half, 4 if "ranks" in way else 1)
            found = read_meta(folder)[1]
        elif way == "gguf":
            write_gguf(folder / "model.gguf", CONFIG, state, tokenizer, "F16", "a model")
            found = read_gguf(folder / "model.gguf").state
        else:
            save_native(folder, CONFIG, state)
            found = open_native(folder)[1]
        for name, value in found.items():
            assert value.shape == state.stored[name].shape, name


class watched:
    """Prints by how many bytes the process's anonymous memory grew at most, looked at a thousand times a second."""

    def __enter__(self) -> None:
        self.before, self.most, self.done = anonymous_bytes(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        while not self.done.wait(0.001):
            self.most = max(self.most, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        print(self.most - self.before)


def anonymous_bytes() -> int:
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1_000  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say")
@pytest.mark.parametrize("way", FORMATS)
def test_a_conversion_needs_the_memory_of_one_tensor(way, tmp_path, capsys):
    started = time.monotonic()
    done = subprocess.run([sys.executable, __file__, way, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grew, model = int(done.stdout), CONFIG.parameters * 4
    with capsys.disabled():
        seconds, whole, largest = time.monotonic() - started, model / 1e6, LARGEST / 1e6
        print(
            f"\n{way}: {grew / 1e6:.0f} MB at most, for a model of {whole:.0f} MB in float32 and {whole / 2:.0f} MB in "
            f"bfloat16, its largest tensor {largest:.0f} MB; {seconds:.0f} s"
        )
    assert grew < 2 * LARGEST + SPARE < model / 4


if __name__ == "__main__":
    there_and_back(sys.argv[1], Path(sys.argv[2]))
