"""The written folder, loaded by transformers, gives our logits; and comes back as it went."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from herd.console import HerdError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.formats import native
from herd.model.formats.huggingface import huggingface_name, read_huggingface, write_huggingface
from herd.model.rope import rotary_frequencies
from herd.model.tokenizer import train_tokenizer
from herd.model.transformer import Transformer

SCALING = RopeScaling(factor=8.0, original_context=64)
GROUPED = ModelConfig(3, 64, 8, 2, 160, 300, 8, 256, rope_scaling=SCALING)
SHAPES = {
    "grouped, stretched": GROUPED,
    "grouped, plain theta": replace(GROUPED, rope_scaling=None, rope_theta=10_000.0),
    "tied, wide heads": ModelConfig(2, 48, 4, 4, 96, 200, 16, 128, tied_embeddings=True),
    "one key-value head": ModelConfig(4, 32, 4, 1, 80, 150, 8, 128, tied_embeddings=True, rope_scaling=SCALING),
}


def random_model(config, seed=0):
    """Weights large enough that attention and gates do something, and norms that are not 1."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.15)
    return model


def theirs(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 150, (2, 100), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_transformers_gives_our_logits(name, tmp_path, tokens):
    model = random_model(SHAPES[name])
    write_huggingface(tmp_path, model.config, model.state_dict(), None, torch.float32)
    logits = theirs(tmp_path)(tokens).logits
    assert logits.std() > 0.3  # there is something to compare
    torch.testing.assert_close(model(tokens), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_in_float64_the_two_are_the_same_function(name, tmp_path, tokens, monkeypatch):
    """Both cast to float32 on purpose in norms and rotation; with these casts lifted only the mathematics is left."""
    model = random_model(SHAPES[name])
    write_huggingface(tmp_path, model.config, model.state_dict(), None, torch.float32)
    other = theirs(tmp_path, torch.float64)
    inverse = other.model.rotary_emb.inv_freq
    frequencies = rotary_frequencies(model.config.head_dim, model.config.rope_theta, model.config.rope_scaling)
    torch.testing.assert_close(inverse.float(), frequencies, rtol=1e-6, atol=0)
    angles = torch.outer(torch.arange(model.config.context).double(), frequencies.double())
    model = model.double()
    model._cos_TF, model._sin_TF = angles.cos(), angles.sin()

    def norm(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    def rotary(x, position_ids):
        halves = torch.cat((angles, angles), -1)[position_ids]
        return halves.cos(), halves.sin()

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(other.model.rotary_emb, "forward", rotary)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    logits = model(tokens)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, other(tokens).logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_reading_inverts_writing(name, tmp_path):
    model = random_model(SHAPES[name])
    write_huggingface(tmp_path, model.config, model.state_dict(), None, torch.float32)
    config, state = read_huggingface(tmp_path)
    assert config == model.config
    assert state.keys() == native.tensor_shapes(config).keys()
    assert all(torch.equal(state[key], model.state_dict()[key]) for key in state)


def test_what_transformers_saves_is_read_too(tmp_path):
    """Its own config spelling, and weights in shards."""
    model = random_model(GROUPED)
    write_huggingface(tmp_path / "ours", GROUPED, model.state_dict(), None, torch.float32)
    theirs(tmp_path / "ours").save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    config, state = read_huggingface(tmp_path / "theirs")
    assert config == GROUPED
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_an_old_config_is_read(tmp_path):
    write_huggingface(tmp_path, GROUPED, random_model(GROUPED).state_dict(), None, torch.float32)
    edit_config(tmp_path, lambda c: [c.pop(key) for key in ("rope_parameters", "dtype", "head_dim")])
    assert read_huggingface(tmp_path)[0] == GROUPED


def edit_config(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(model_type="mistral"), "model_type is 'mistral'"),
        (lambda c: c.update(attention_bias=True), "attention_bias is True"),
        (lambda c: c.pop("hidden_size"), "hidden_size is None; expected a whole number from 1 to 100000"),
        (
            lambda c: c.update(num_hidden_layers=10**30),
            "num_hidden_layers is 1000000000000000000000000000000; expected",
        ),
        (lambda c: c.update(num_attention_heads=True), "num_attention_heads is True"),
        (lambda c: c.update(num_key_value_heads=3), "8 attention heads do not divide into 3"),
        (lambda c: c["rope_parameters"].update(factor="8"), "factor is '8'; expected a number above 0"),
        (lambda c: c["rope_parameters"].update(low_freq_factor=4), "expected 0 < low < high"),
        (lambda c: c["rope_parameters"].update(rope_type="yarn"), "rope_type 'yarn'"),
        (lambda c: c.update(intermediate_size=8), "feed_forward.w1.weight has shape (160, 64)"),
        (lambda c: c.update(num_hidden_layers=2), "unknown tensor model.layers.2."),
        (lambda c: c.update(num_hidden_layers=4), "missing tensor layers.3."),
    ],
)
def test_a_foreign_config_is_refused_by_name(change, named, tmp_path):
    write_huggingface(tmp_path, GROUPED, random_model(GROUPED).state_dict(), None, torch.float32)
    edit_config(tmp_path, change)
    with pytest.raises(HerdError, match=r".") as caught:
        read_huggingface(tmp_path)
    assert named in str(caught.value) and str(tmp_path) in str(caught.value)


def test_damaged_weights_are_refused_by_name(tmp_path):
    write_huggingface(tmp_path, GROUPED, random_model(GROUPED).state_dict(), None, torch.float32)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(HerdError, match=r"model\.safetensors: not a whole"):
        read_huggingface(tmp_path)
    weights.unlink()
    with pytest.raises(HerdError, match=r"model\.safetensors: missing"):
        read_huggingface(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(HerdError, match="leads out of the folder"):
        read_huggingface(tmp_path)


def test_every_name_is_transformers_own(tmp_path):
    model = random_model(GROUPED)
    write_huggingface(tmp_path, GROUPED, model.state_dict(), None, torch.bfloat16)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == theirs(tmp_path).state_dict().keys()
    assert written.keys() == {huggingface_name(name) for name in model.state_dict()}
    assert all(weight.dtype == torch.bfloat16 for weight in written.values())


def test_special_ids_reach_the_generation_config(tmp_path):
    tokenizer = train_tokenizer(["some text to merge, some more text to merge"], 285)
    config = replace(GROUPED, vocab_size=285)
    write_huggingface(tmp_path, config, random_model(config).state_dict(), tokenizer, torch.float32)
    model = theirs(tmp_path)
    assert model.generation_config.eos_token_id == sorted(tokenizer.stop_ids)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)


@pytest.mark.parametrize("name", SHAPES)
def test_native_round_trip_and_missing_tensor(name, tmp_path):
    model = random_model(SHAPES[name])
    native.save_native(tmp_path, model.config, model.state_dict())
    again = native.load_native(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["norm.weight"]
    save_file(state, file)
    with pytest.raises(HerdError, match=r"model\.safetensors: missing tensor norm\.weight"):
        native.load_native(tmp_path)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_shards_are_what_transformers_reads(name, tmp_path, tokens):
    """Files of at most 40 kB but where one tensor is larger, with an index."""
    model = random_model(SHAPES[name])
    write_huggingface(tmp_path, model.config, model.state_dict(), None, torch.float32, shard_bytes=40_000)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and not (tmp_path / "model.safetensors").exists()
    assert all(len(load_file(file)) == 1 or file.stat().st_size < 42_000 for file in files)
    assert index["metadata"]["total_size"] == 4 * model.config.parameters
    torch.testing.assert_close(theirs(tmp_path)(tokens).logits, model(tokens), atol=1e-4, rtol=0)
    config, state = read_huggingface(tmp_path)
    assert config == model.config and all(torch.equal(state[key], model.state_dict()[key]) for key in state)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m, files: m.update(dict.fromkeys(m, INDEX)), "index.json: not a whole safetensors file"),
        (lambda m, files: m.update({"model.norm.weight": files[0]}), "holds model.norm.weight, which"),
        (lambda m, files: m.update({"model.extra.weight": files[0]}), "no tensor model.extra.weight, which"),
        (
            lambda m, files: m.update({k: "gone.safetensors" for k in m if m[k] == files[-1]}),
            "gone.safetensors: missing",
        ),
        (lambda m, files: m.update({f"{i}": f"{i}.safetensors" for i in range(20_000)}), "at most 10,000 are read"),
        (lambda m, files: m.update({"model.norm.weight": 3}), "not a table of file names"),
    ],
    ids=["cyclic", "elsewhere", "promised", "missing", "many", "number"],
)
def test_a_wrong_index_is_named(change, named, tmp_path):
    write_huggingface(tmp_path, GROUPED, random_model(GROUPED).state_dict(), None, torch.float32, shard_bytes=40_000)
    index = json.loads((tmp_path / INDEX).read_text())
    change(index["weight_map"], sorted(set(index["weight_map"].values())))
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(HerdError, match=r".") as caught:
        read_huggingface(tmp_path)
    assert named in str(caught.value) and str(tmp_path) in str(caught.value)
