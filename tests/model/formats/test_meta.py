"""Meta's folder: torch and transformers read what is written as Meta's code would; any number of ranks comes back."""

import json
import zipfile
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.serialization import config as torch_config
from transformers import LlamaConfig, LlamaForCausalLM

from herd.console import HerdError
from herd.model.config import LLAMA3, ModelConfig, RopeScaling, released_ffn_width
from herd.model.formats.meta import ffn_rule, read_meta, write_meta
from herd.model.formats.native import build, tensor_shapes
from herd.model.formats.weights import Stored, Weights
from herd.model.tokenizer import Tokenizer, train_tokenizer
from herd.model.transformer import Transformer

GROUPED = ModelConfig(3, 64, 8, 4, 160, 304, 8, 8_192)
TIED = replace(GROUPED, tied_embeddings=True)
STRETCHED = replace(GROUPED, kv_heads=2, context=131_072, rope_scaling=RopeScaling())
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
COLUMNS = ("attention.wo", "feed_forward.w2")


def random_state(config, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = tensor_shapes(config)
    return {
        name: (torch.randn(shape, generator=draw) * 0.15 + (1.0 if "norm" in name else 0.0)).to(dtype)
        for name, shape in shapes.items()
    }


def same(state, other):
    """Names, dtypes and every bit."""
    return state.keys() == other.keys() and all(
        state[name].dtype == other[name].dtype
        and torch.equal(state[name].contiguous().view(torch.uint8), other[name].contiguous().view(torch.uint8))
        for name in state
    )


def files(folder):
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth"))]


def edit(folder, **changed):
    values = json.loads((folder / "params.json").read_text()) | changed
    (folder / "params.json").write_text(json.dumps({key: value for key, value in values.items() if value != "gone"}))


@pytest.mark.parametrize("config", [GROUPED, TIED, STRETCHED], ids=["grouped", "tied", "stretched"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_reading_inverts_writing(config, dtype, shards, tmp_path):
    state = random_state(config, dtype)
    write_meta(tmp_path, config, state, None, dtype, shards)
    found, weights = read_meta(tmp_path)
    assert found == config
    assert same(weights, state)
    assert len(list(tmp_path.glob("consolidated.*.pth"))) == shards


def test_resharded_folders_hold_the_same_model(tmp_path):
    """More ranks than key-value heads: each head is stored twice for 4 ranks, and once again for 2."""
    state = random_state(STRETCHED, torch.bfloat16)
    write_meta(tmp_path / "4", STRETCHED, state, None, torch.bfloat16, 4)
    assert json.loads((tmp_path / "4" / "params.json").read_text())["n_kv_heads"] == 4
    for old, new in ((4, 2), (2, 1), (1, 8), (8, 4)):
        config, weights = read_meta(tmp_path / f"{old}")
        write_meta(tmp_path / f"{new}", config, weights, None, torch.bfloat16, new)
        config, weights = read_meta(tmp_path / f"{new}")
        assert config == STRETCHED and same(weights, state)


def test_a_folder_is_resharded_in_its_place(tmp_path):
    state = random_state(GROUPED, torch.bfloat16)
    write_meta(tmp_path, GROUPED, state, None, torch.bfloat16, 4)
    write_meta(tmp_path, *read_meta(tmp_path), None, torch.bfloat16, 2)
    config, weights = read_meta(tmp_path)
    assert config == GROUPED and same(weights, state) and len(list(tmp_path.glob("*.pth"))) == 2


def test_key_value_heads_are_counted_with_their_copies_or_without(tmp_path):
    state = random_state(STRETCHED)
    write_meta(tmp_path, STRETCHED, state, None, torch.float32, 8)
    edit(tmp_path, n_kv_heads=2)
    config, weights = read_meta(tmp_path)
    assert config == STRETCHED and same(weights, state)
    path = tmp_path / "consolidated.03.pth"
    part = torch.load(path, weights_only=True)
    part["layers.2.attention.wv.weight"][0, 0] += 1
    torch.save(part, path)
    with pytest.raises(HerdError, match=r"layers\.2\.attention\.wv\.weight does not have each key-value head 4 times"):
        read_meta(tmp_path)[1]["layers.2.attention.wv.weight"]


@pytest.mark.parametrize("config", [GROUPED, TIED])
@pytest.mark.parametrize("shards", [1, 2])
def test_torch_reads_names_and_parts_as_metas_code_expects_them(config, shards, tmp_path):
    """Written out by hand: columns of wo and w2, rows of all else, norms whole, and always an output.weight."""
    state = random_state(config, torch.bfloat16)
    write_meta(tmp_path, config, state, None, torch.bfloat16, shards)
    whole = state | {"output.weight": state["tok_embeddings.weight" if config.tied_embeddings else "output.weight"]}
    parts = files(tmp_path)
    assert len(parts) == shards
    for rank, part in enumerate(parts):
        assert part.keys() == whole.keys()
        for name, value in part.items():
            expected = whole[name]
            if expected.dim() == 2:
                size = expected.shape[1 if any(one in name for one in COLUMNS) else 0] // shards
                rows = slice(rank * size, (rank + 1) * size)
                expected = expected[:, rows] if any(one in name for one in COLUMNS) else expected[rows]
            assert torch.equal(value, expected) and value.is_contiguous()
        shared = part["output.weight"].data_ptr() == part["tok_embeddings.weight"].data_ptr()
        assert shared == config.tied_embeddings


def test_the_file_is_torch_saves_byte_for_byte(tmp_path):
    """Up to the end of the last record that ours has; torch then adds an id of its own and the directory."""
    write_meta(tmp_path / "ours", TIED, random_state(TIED), None, torch.bfloat16)
    path = tmp_path / "ours" / "consolidated.00.pth"
    torch.save(torch.load(path, weights_only=True), tmp_path / path.name)
    ours, theirs = path.read_bytes(), (tmp_path / path.name).read_bytes()
    end = ours.index(b"PK\x01\x02", -40_000)
    assert ours[:end] == theirs[:end] and theirs[end:].startswith(b"PK\x03\x04")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    mapped = torch.load(path, mmap=True, weights_only=True)
    assert all(value.data_ptr() % 64 == 0 for value in mapped.values())
    with torch_config.patch("load.calculate_storage_offsets", True):  # type: ignore[attr-defined] (by torch's rule)
        calculated = torch.load(path, mmap=True, weights_only=True)
    assert all(torch.equal(calculated[name], mapped[name]) for name in mapped)


@pytest.mark.parametrize("config", [GROUPED, STRETCHED], ids=["grouped", "stretched"])
@torch.no_grad()
def test_transformers_gives_our_logits(config, tmp_path):
    """Through the conversion of two ranks' files written out here: joined, renamed, q and k from pairs to halves."""
    state = random_state(config)
    write_meta(tmp_path, config, state, None, torch.float32, 2)
    params, parts = json.loads((tmp_path / "params.json").read_text()), files(tmp_path)
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", **scaled} if params["use_scaled_rope"] else {"rope_type": "default"}
    width = params["ffn_dim_multiplier"] * int(8 * params["dim"] / 3)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=params["dim"],
            intermediate_size=-(-int(width) // params["multiple_of"]) * params["multiple_of"],
            num_hidden_layers=params["n_layers"],
            num_attention_heads=params["n_heads"],
            num_key_value_heads=params["n_kv_heads"],
            vocab_size=params["vocab_size"],
            rms_norm_eps=params["norm_eps"],
            max_position_embeddings=config.context,
            rope_parameters={"rope_theta": params["rope_theta"], **rope},
        )
    ).eval()
    names = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj", "w1": "gate_proj", "w2": "down_proj"}
    names |= {"w3": "up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    converted = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        joined = values[0] if "norm" in name else torch.cat(values, 1 if any(one in name for one in COLUMNS) else 0)
        if name.endswith(("wq.weight", "wk.weight")):
            heads = params["n_heads" if "wq" in name else "n_kv_heads"]
            dim = params["dim"]
            joined = joined.view(heads, joined.shape[0] // heads // 2, 2, dim).transpose(1, 2).reshape(-1, dim)
        for ours, other in names.items():
            name = name.replace(f"{ours}.weight", f"{other}.weight")
        name = name.replace("attention.", "self_attn.").replace("feed_forward.", "mlp.")
        name = {"output.weight": "lm_head.weight"}.get(name, f"model.{name}")
        converted[name.replace("tok_embeddings", "embed_tokens")] = joined
    theirs.load_state_dict(converted)
    tokens = torch.randint(0, 300, (2, 100), generator=torch.Generator().manual_seed(1))
    logits = theirs(tokens).logits
    assert logits.std() > 0.3  # there is something to compare
    ours = build(replace(config, context=200), read_meta(tmp_path)[1])
    torch.testing.assert_close(ours(tokens), logits, atol=1e-4, rtol=0)


def test_what_torch_saves_is_read(tmp_path):
    """State dicts of modules with their attributes, parameters, views of larger storages, computed tensors."""
    state = random_state(TIED)
    write_meta(tmp_path, TIED, state, None, torch.float32)
    model = Transformer(replace(TIED, context=16))
    model.load_state_dict({**state, "output.weight": state["tok_embeddings.weight"]})
    path = tmp_path / "consolidated.00.pth"
    for table in (
        model.state_dict(),
        dict(model.named_parameters()),  # a tied head is not named
        {name: torch.cat((value, value), -1).chunk(2, -1)[1] for name, value in state.items()},
        {name: value.t().contiguous().t() for name, value in state.items()},
        state | {"rope.freqs": torch.ones(4)},
    ):
        torch.save(table, path)
        config, weights = read_meta(tmp_path)
        assert config == TIED and same(weights, state)


def test_released_params_are_said_and_read_as_released(tmp_path):
    """Sizes alone: a llama-models SKU's arch_args, copied from its sku_list."""
    rules = {"1B": (1.5, 256), "3B": (1.0, 256), "8B": (1.3, 1024), "70B": (1.3, 4096), "405B": (1.2, 4096)}
    for size, (multiplier, multiple) in rules.items():
        config = LLAMA3[size]
        assert ffn_rule(config.dim, config.ffn_dim) == (multiplier, multiple)
        assert released_ffn_width(config.dim, multiplier, multiple) == config.ffn_dim
    # 1B and 3B scale by 32; a toy of their sizes does too, though no such file says so
    toy = replace(LLAMA3["1B"], ffn_dim=32, vocab_size=8)
    zero = torch.zeros(1, dtype=torch.bfloat16)
    shapes = {name: tuple(shape) for name, shape in tensor_shapes(toy).items()}
    zeros = Weights({name: Stored(at, zero.dtype, lambda at=at: zero.expand(at)) for name, at in shapes.items()})
    write_meta(tmp_path, toy, zeros, None, torch.bfloat16)
    assert read_meta(tmp_path)[0] == toy


@settings(deadline=None, max_examples=500)
@given(st.integers(1, 100_000), st.integers(1, 1_000_000))
def test_every_ffn_width_can_be_said(dim, ffn_dim):
    multiplier, multiple = ffn_rule(dim, ffn_dim)
    assert released_ffn_width(dim, multiplier, multiple) == ffn_dim
    assert json.loads(json.dumps(multiplier)) == multiplier > 0


def test_params_may_leave_things_out(tmp_path):
    config = replace(GROUPED, kv_heads=8, ffn_dim=256)
    state = random_state(config)
    write_meta(tmp_path, config, state, None, torch.float32, 2)
    edit(tmp_path, n_kv_heads="gone", rope_theta="gone", norm_eps="gone", use_scaled_rope="gone", vocab_size=-1)
    edit(tmp_path, ffn_dim_multiplier="gone", multiple_of="gone", quantization_args=None, max_batch_size=6)
    assert read_meta(tmp_path)[0] == config  # 256 is what 2/3 of 4 x 64 rounds up to


def test_a_tokenizer_goes_along(tmp_path):
    tokenizer = train_tokenizer(["some text to merge, some more text to merge"], 285)
    config = replace(GROUPED, vocab_size=285)
    write_meta(tmp_path, config, random_state(config), tokenizer, torch.float32)
    assert Tokenizer.load(tmp_path).encode("some text") == tokenizer.encode("some text")


@pytest.mark.parametrize(
    ("config", "shards", "problem"),
    [
        (replace(GROUPED, head_dim=16), 1, "8 heads of 16 in a width of 64"),
        (replace(GROUPED, rope_scaling=RopeScaling(factor=32.0)), 1, r"factor=32\.0.*can't be told.*factor=8\.0"),
        (replace(GROUPED, rope_scaling=RopeScaling(original_context=64)), 1, "original_context=64.*can't be told"),
        (GROUPED, 0, "0 shards do not divide the attention heads"),
        (GROUPED, 3, "3 shards do not divide the attention heads, 8"),
        (replace(GROUPED, ffn_dim=161), 2, "do not divide the FFN width, 161"),
        (replace(GROUPED, vocab_size=301), 2, "do not divide the vocabulary, 301"),
        (ModelConfig(1, 48, 6, 2, 96, 300, 8, 8_192), 3, "3 shards and 2 key-value heads do not divide"),
    ],
)
def test_what_the_format_cannot_say_is_refused(config, shards, problem, tmp_path):
    with pytest.raises(HerdError, match=problem):
        write_meta(tmp_path / "out", config, random_state(config), None, torch.float32, shards)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"dim": "gone"}, "dim is None; expected a whole number"),
        ({"n_layers": 4}, r"missing tensor layers\.3\."),
        ({"n_layers": 2}, r"unknown tensor layers\.2\."),
        ({"n_heads": 7}, "dim 64 does not divide into n_heads 7"),
        ({"n_kv_heads": 3}, "8 attention heads do not divide into 3"),
        ({"ffn_dim_multiplier": 1e9}, "makes a width of"),
        ({"ffn_dim_multiplier": 2.0}, r"feed_forward\.w1\.weight has shape \(160, 64\), the config says \(352, 64\)"),
        ({"vocab_size": 608}, r"2 files.*: tok_embeddings\.weight has shape \(304, 64\), the config says \(608, 64\)"),
        ({"use_scaled_rope": 1}, "use_scaled_rope is 1; expected true or false"),
        ({"quantization_args": {"scheme": "int4"}}, "has quantization_args; herd reads Meta's weights as trained"),
        ({"lora_args": {"rank": 16}}, "has lora_args"),
    ],
)
def test_foreign_params_are_refused_by_name(changed, problem, tmp_path):
    write_meta(tmp_path, GROUPED, random_state(GROUPED), None, torch.float32, 2)
    edit(tmp_path, **changed)
    with pytest.raises(HerdError, match=problem) as caught:
        read_meta(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_ranks_that_do_not_fit_each_other_are_refused_by_name(tmp_path):
    state, other = random_state(GROUPED, seed=1), random_state(GROUPED, seed=2)
    write_meta(tmp_path, GROUPED, state, None, torch.float32, 4)
    _, second, third = (tmp_path / f"consolidated.{rank:02d}.pth" for rank in range(3))
    whole = second.read_bytes()
    second.unlink()
    with pytest.raises(HerdError, match=r"consolidated\.01\.pth: missing; 3 files"):
        read_meta(tmp_path)
    part = torch.load(third, weights_only=True)
    torch.save({name: value for name, value in part.items() if name != "norm.weight"}, second)
    with pytest.raises(HerdError, match=r"consolidated\.01\.pth: norm\.weight is not both in this file and in"):
        read_meta(tmp_path)
    torch.save(part | {"output.weight": part["output.weight"].half()}, second)
    with pytest.raises(HerdError, match=r"output\.weight differs in shape or dtype"):
        read_meta(tmp_path)
    write_meta(tmp_path / "other", GROUPED, other, None, torch.float32, 4)
    second.write_bytes((tmp_path / "other" / second.name).read_bytes())
    with pytest.raises(HerdError, match=r"norm\.weight is not the same in all files"):
        read_meta(tmp_path)[1]["norm.weight"]
    second.write_bytes(whole)
    assert same(read_meta(tmp_path)[1], state)
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    with pytest.raises(HerdError, match=r"0 files consolidated\.NN\.pth"):
        read_meta(tmp_path)
