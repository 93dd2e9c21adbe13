"""One model through every format and back: the same bits in the same dtype, and the same config, at each station."""

from dataclasses import replace

import pytest
import torch

from herd.model.config import ModelConfig, RopeScaling
from herd.model.formats.gguf import read_gguf
from herd.model.formats.gguf_write import write_gguf
from herd.model.formats.huggingface import read_huggingface, write_huggingface
from herd.model.formats.meta import read_meta, write_meta
from herd.model.formats.native import open_native, save_native, tensor_shapes
from herd.model.tokenizer import train_tokenizer

VOCABULARY = 304
PLAIN = ModelConfig(3, 64, 8, 2, 160, VOCABULARY, 8, 8_192)
CONFIGS = {
    "plain": PLAIN,
    "tied": replace(PLAIN, tied_embeddings=True, kv_heads=8, rope_theta=250_000.0),
    "stretched": replace(PLAIN, context=131_072, rope_scaling=RopeScaling(), norm_eps=1e-6),
}


def random_state(config, dtype):
    draw = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=draw) * 0.15 + (1.0 if "norm" in name else 0.0)).to(dtype)
        for name, shape in tensor_shapes(config).items()
    }


def same(state, other):
    """Names, dtypes and every bit."""
    return state.keys() == other.keys() and all(
        state[name].dtype == other[name].dtype
        and torch.equal(state[name].contiguous().view(torch.uint8), other[name].contiguous().view(torch.uint8))
        for name in state
    )


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(
        ["some text to merge, some more text to merge, and other texts of some longer words"], VOCABULARY
    )


def test_a_model_is_written_over_itself(tmp_path):
    """The files that the weights are still read from are replaced; shards give way to one file."""
    state = random_state(PLAIN, torch.bfloat16)
    write_huggingface(tmp_path / "hf", PLAIN, state, None, torch.bfloat16, shard_bytes=50_000)
    config, weights = read_huggingface(tmp_path / "hf")
    write_huggingface(tmp_path / "hf", config, weights, None, torch.bfloat16)
    assert same(read_huggingface(tmp_path / "hf")[1], state)
    save_native(tmp_path / "herd", PLAIN, state)
    save_native(tmp_path / "herd", *open_native(tmp_path / "herd"))
    assert same(open_native(tmp_path / "herd")[1], state)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F32")])
def test_nothing_changes_on_the_way(config, dtype, kind, tokenizer, tmp_path):
    """Hugging Face, herd, Meta on two ranks, herd, GGUF, herd, Hugging Face in shards; each written from the last."""
    state = random_state(config, dtype)
    stations = iter(range(100))

    def passed(found):
        """The weights as read, after a look at them."""
        assert found[0] == config and same(found[1], state)
        return found[1]

    def by_herd(weights):
        folder = tmp_path / f"herd{next(stations)}"
        save_native(folder, config, weights)
        return passed(open_native(folder))

    write_huggingface(tmp_path / "hf", config, state, tokenizer, dtype)
    weights = by_herd(passed(read_huggingface(tmp_path / "hf")))
    write_meta(tmp_path / "meta", config, weights, tokenizer, dtype, 2)
    weights = by_herd(passed(read_meta(tmp_path / "meta")))
    write_gguf(tmp_path / "model.gguf", config, weights, tokenizer, kind, "a model")
    found = read_gguf(tmp_path / "model.gguf")
    assert found.tokenizer.ranks == tokenizer.ranks and found.tokenizer.special == tokenizer.special
    weights = by_herd(passed(found[:2]))
    write_huggingface(tmp_path / "again", config, weights, tokenizer, dtype, shard_bytes=50_000)
    passed(read_huggingface(tmp_path / "again"))
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 2
