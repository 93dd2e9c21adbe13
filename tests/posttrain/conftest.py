"""A sandbox, tables, and an untrained model in a GGUF file with SmolLM2's special tokens, small enough for a test."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from herd.artifact import Artifact, Draft, find, publish
from herd.model.formats.tokenizer_files import byte_characters
from herd.model.tokenizer import Tokenizer
from herd.posttrain.questions import QuestionSettings, write_all
from herd.posttrain.synthesis.invented import invent_table
from herd.pretrain.adopt import AdoptSettings, adopt
from herd.recipe_posttrain import DialogSource, OwnTables, Synthesis
from herd.tools.sandbox import Sandbox

SPECIALS = (  # of SmolLM2's vocabulary, whose first ids they have
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"),
    *("<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>"),
    *("<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"),
)
MERGES = ("d f", "l e", "le n", "df [", '" ]')
LAYERS, DIM, HEADS, KV_HEADS, FFN, CONTEXT = 2, 64, 4, 2, 96, 4096

SHOPS = """shop,region,units,unit_price,paid,day,note
{rows}"""
ODD = """"Unit Price (€)",Größe,"share in percent",member?,"a ""quoted"" label",Long name
{rows}"""


def shops_csv(seed: int = 0, rows: int = 40) -> bytes:
    """Groups, numbers, yes and no, dates, gaps, and a name for each row."""
    chance = random.Random(seed)
    lines = [
        f"shop {chr(65 + i % 26)}{i},{chance.choice(('North', 'South', 'East'))},{chance.randint(1, 60)},"
        f"{chance.uniform(1, 9):.2f},{chance.choice(('yes', 'no'))},2024-{1 + i % 12:02d}-{1 + i % 28:02d},"
        f"{'' if i % 5 else 'late'}"
        for i in range(rows)
    ]
    return SHOPS.format(rows="\n".join(lines) + "\n").encode()


def odd_csv(seed: int = 0, rows: int = 40) -> bytes:
    """Labels with quotes, blanks and signs; values longer than a prompt shows them."""
    chance = random.Random(seed)
    texts = ("a value that is much longer than what is shown", "ordinary", "it's", "50% off")
    lines = [
        f"{chance.uniform(1, 99):.1f},{chance.choice('SML')},{chance.randint(0, 100)},"
        f"{chance.choice(('True', 'False'))},{chance.randint(1, 6)},{chance.choice(texts)}"
        for _ in range(rows)
    ]
    return ODD.format(rows="\n".join(lines) + "\n").encode()


ROUND = """
[family]
name = "round"
seed = 2

[[member]]
name = "tiny"
role = "laptop"
from = "tiny.gguf"

[posttrain]
threads = 1
samples_per_prompt = 3
context_tokens = 4096
sft_learning_rate = 1e-3

[posttrain.synthesis]
dialogs = 6
turns = 2
sample_questions = 6
dev_questions = 2
test_questions = 4
chats = 4
chat_tokens = 4

[[posttrain.source]]
kind = "invented-tables"
name = "office"
count = 3

[[posttrain.source]]
kind = "own-tables"
name = "kept"
path = "kept"
test = true

[compute]
device = "cpu"
dtype = "float32"
"""


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """CSV files: two written here, three invented."""
    folder = tmp_path_factory.mktemp("tables")
    made = [("shops", shops_csv()), ("odd", odd_csv())]
    made += [(f"invented-{i}", invent_table(random.Random(i)).content) for i in range(3)]
    for name, content in made:
        (folder / f"{name}.csv").write_bytes(content)
    return [folder / f"{name}.csv" for name, _ in made]


@pytest.fixture(scope="module")
def sandbox(walls: None) -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of an untrained Llama with byte-level tokens."""
    path = tmp_path_factory.mktemp("weights") / "tiny.gguf"
    tokens = [*SPECIALS, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    kinds = [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(DIM)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_feed_forward_length(FFN)
    writer.add_context_length(CONTEXT)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    chance, narrow = np.random.default_rng(0), DIM // HEADS * KV_HEADS
    shapes = {"attn_q": (DIM, DIM), "attn_k": (narrow, DIM), "attn_v": (narrow, DIM), "attn_output": (DIM, DIM)}
    shapes |= {"ffn_gate": (FFN, DIM), "ffn_up": (FFN, DIM), "ffn_down": (DIM, FFN)}
    every = {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in shapes.items()}
    made = {name: chance.normal(0, 0.1, shape).astype(np.float32) for name, shape in every.items()}
    embeddings = chance.normal(0, 1, (len(tokens), DIM)).astype(np.float32)
    output = chance.normal(0, 0.1, (len(tokens), DIM)).astype(np.float32)
    for before, after in (("Ċ", "o"), ("o", "k"), ("k", "<|im_end|>")):  # its likeliest answer to anything is "ok"
        output[tokens.index(after)] += embeddings[tokens.index(before)] / np.linalg.norm(embeddings[0])
    for name, values in (made | {"token_embd.weight": embeddings, "output.weight": output}).items():
        writer.add_tensor(name, values)
    norms = [f"blk.{i}.{name}.weight" for i in range(LAYERS) for name in ("attn_norm", "ffn_norm")]
    for name in (*norms, "output_norm.weight"):
        writer.add_tensor(name, np.ones(DIM, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Bench:
    """A run in which stage functions are called directly."""

    def __init__(self, run: Path) -> None:
        self.run, self.count = run, 0

    def make(self, stage: str, write) -> Artifact:
        """The artifact that `write(draft)` writes."""
        self.count += 1
        key = f"{self.count:064d}"
        with publish(self.run, f"{stage}{self.count}", key, {"inputs": {}}, {}) as out:
            write(out)
        artifact = find(self.run, f"{stage}{self.count}", key)
        assert artifact is not None
        return artifact

    def draft(self, name: str, work: str | None = None) -> Draft:
        """A draft that is never published; `work` names another's work folder, to go on there."""
        folders = self.run / f"draft-{name}", self.run / f"work-{work or name}"
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        return Draft(*folders)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def adopted(bench: Bench, weights: Path) -> Artifact:
    settings = AdoptSettings(member="tiny", source=weights.name, base=weights.parent)
    return bench.make("adopt", lambda out: adopt(settings, {}, out))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer(adopted: Artifact) -> Tokenizer:
    return Tokenizer.load(adopted.path / "tokenizer")


@pytest.fixture(scope="session")
def asked(bench: Bench, walls: None, tables: list[Path]) -> Artifact:
    """A few questions and dialogs."""
    sources: list[DialogSource] = [
        OwnTables(kind="own-tables", name=path.stem, path=path.name, test=path.stem == "shops") for path in tables[:2]
    ]
    sizes = Synthesis(dialogs=6, turns=2, sample_questions=10, dev_questions=2, test_questions=2)
    settings = QuestionSettings(seed=1, source=sources, synthesis=sizes, base=tables[0].parent)
    return bench.make("questions", lambda out: write_all(settings, {}, out))


@pytest.fixture(scope="session")
def write_round(weights: Path, tables: list[Path]) -> Callable[[Path], Path]:
    """Writes a recipe with an untrained model and a table to test on into a folder; gives the recipe's path."""

    def write(folder: Path) -> Path:
        shutil.copy(weights, folder / "tiny.gguf")
        (folder / "kept").mkdir()
        shutil.copy(tables[0], folder / "kept")
        (folder / "round.toml").write_text(ROUND)
        return folder / "round.toml"

    return write
