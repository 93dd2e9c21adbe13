"""Under a table's grammar every column label exists, whatever the network has learnt; Python's ast is the judge."""

import argparse
import ast
import json
import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from herd.console import HerdError
from herd.infer.engine import Engine
from herd.infer.grammar import Grammars
from herd.model.config import ModelConfig
from herd.model.generation import Sampling
from herd.model.tokenizer import train_tokenizer
from herd.model.transformer import Transformer, init_weights
from herd.tools.columns import NEW_LABELS, call_grammar

HOSTILE = ['a "b"', "x\\y", "new\nline", "größe 🙂", "[a-z]+(.*)|$", "tab\there", "'", "#1", "%if", "<[3]>", "", " "]
LABELS = ["price", "sold units", "year", *HOSTILE]
HABITS = [
    'df["{a}"].mean()',
    'df[df["{a}"] == "red"]["{b}"].sum()',
    'df.groupby("{a}")["{b}"].mean()',
    'df[["{a}", "{b}"]].max()',
    'df["ratio"] = df["{a}"] / df["{b}"]\ndf["ratio"].max()',
    'df.sort_values("{a}", ascending=False)["{b}"]',
]
METHODS = ("isin", "between", "contains")
LETTERS = "abcdefghijklmnopqrstuvwxyz_ .ö[(" + 2 * "\\"


@pytest.fixture(scope="module")
def tokenizer():
    assert argparse.__file__ is not None
    return train_tokenizer([Path(argparse.__file__).read_text(), "\n".join(HABITS * 20)], 400)


@pytest.fixture(scope="module")
def call_id(tokenizer):
    return tokenizer.special["<|python_tag|>"]


@pytest.fixture(scope="module")
def engine(tokenizer, call_id):
    """A network trained for seconds to write calls with labels that no table of these tests has."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(2, 64, 4, 2, 128, 400, 16, 256, tied_embeddings=True, rope_theta=1e4))
    init_weights(model, 0)
    optimizer, chooser = torch.optim.AdamW(model.parameters(), 6e-3), random.Random(0)
    for step in range(150):
        rows = [invented(chooser) for _ in range(24)]
        ids = [[tokenizer.bos_id, call_id, *tokenizer.encode(row), tokenizer.eos_id] for row in rows]
        tokens = torch.full((len(ids), max(map(len, ids))), tokenizer.eos_id)
        for row, sequence in enumerate(ids):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
        for group in optimizer.param_groups:
            group["lr"] = 6e-3 * (1 - step / 150)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Engine(model.requires_grad_(False), tokenizer)


def invented(chooser):
    a, b = ("".join(chooser.choices(LETTERS, k=chooser.randint(3, 9))).replace("\\", "\\n") for _ in range(2))
    return chooser.choice(HABITS).replace("{a}", a).replace("{b}", b)


def codes(engine, tokenizer, call_id, count, grammar):
    """Code of sampled calls that came to their end."""
    completions = engine.generate(
        [[tokenizer.bos_id]] * count, Sampling(1.0, 1.0, max_tokens=60, seed=3, grammar=grammar)
    )
    ended = [c.ids for c in completions if c.stop_reason == "end" and c.ids[0] == call_id]
    return [tokenizer.decode(ids[1:-1]) for ids in ended]


def unknown(code, labels):
    """Labels in subscripts that neither the table has nor an earlier line has created; raises SyntaxError."""
    known, found = set(labels), []
    for statement in ast.parse(code).body:
        created = set()
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript):
            target = statement.targets[0].slice
            created = {target.value} if isinstance(target, ast.Constant) and target.value in NEW_LABELS else set()
        used = [
            label for node in ast.walk(statement) if isinstance(node, ast.Subscript) for label in strings(node.slice)
        ]
        if created:
            used.remove(*created)
        found += [label for label in used if label not in known]
        known |= created
    return found


def strings(node):
    """String constants in a subscript's slice, without what is compared with, or given to a method of values."""
    if isinstance(node, ast.Compare):
        return strings(node.left)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        return strings(node.func.value)
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    return [text for child in ast.iter_child_nodes(node) for text in strings(child)]


def parsed(samples):
    good = []
    for code in samples:
        try:
            ast.parse(code)
            good.append(code)
        except (SyntaxError, ValueError):
            continue
    return good


def test_300_sampled_calls_use_existing_labels_only(engine, tokenizer, call_id):
    free = parsed(codes(engine, tokenizer, call_id, 60, None))
    assert sum(bool(unknown(code, LABELS)) for code in free) > len(free) * 0.8 > 20  # what it does without the grammar
    bound = parsed(codes(engine, tokenizer, call_id, 300, call_grammar(LABELS, call_id)))
    assert len(bound) > 60
    assert [code for code in bound if unknown(code, LABELS)] == []
    used = {label for code in bound for node in ast.walk(ast.parse(code)) for label in literals(node)}
    assert len(used & set(HOSTILE)) > 5 and used & {"ratio"}


def literals(node):
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def accepted(tokenizer, grammar, ids):
    """Whether the grammar takes these ids and may end behind them."""
    progress = Grammars(tokenizer).begin(grammar)
    try:
        for token in [*ids, tokenizer.eos_id]:
            progress.take(token)
    except HerdError:
        return False
    return True


GOOD = [
    'df["price"].mean()',
    'df[(df["price"] > 3) & (df["year"] == "2020")][["price", "sold units"]]',
    'df.groupby("year")["price"].agg(["mean", "max"])',
    'df.groupby(["year", "price"]).agg({"price": "mean", "sold units": ["sum", "max"]})',
    'df.groupby("year").agg(most=("price", "max"), all_of=("sold units", "sum")).head(3)',
    'df[df["year"].isin(["1999", "2001"])]["price"].median()',
    'df[df["year"].between("1999-01-01", "2001-01-01")]',
    'df[df["year"].str.contains("any \\"text\\" here")]["price"].count()',
    'df["year"].fillna("unknown").value_counts()',
    'pd.to_datetime(df["year"], format="%Y", errors="coerce").dt.strftime("%B")',
    'df[["price", "sold units"]].corr(method="spearman")',
    'df["year"] = pd.to_numeric(df["year"], errors="coerce")',
    'df["ratio"] = df["price"] / df["sold units"]\ndf.sort_values("ratio", ascending=False).head(5)[["year", "ratio"]]',
    'df["total"] = df["price"] * 2; df["total"].sum()',
    'x = df["price"]\ndf["share"] = x / x.sum()\ndf["rate"] = df["share"] * 100\ndf["rate"].max()',
    'for label in ["price", "year"]:\n    print(df[label].mean())',
    'print("the mean is", df["price"].mean())',
    "len(df)",
    'df[df["price"] != ""].shape[0]',
]
BAD = [
    'df["cost"].mean()',
    'df["ratio"].mean()',
    'df["ratio"] = df["ratio"] + 1',
    'df["made up"] = 3',
    "df['price'].mean()",
    'df[f"price"].mean()',
    'df["pri" "ce"].mean()',
    'df["price" "year"]',
    'df[["price", "mean"]]',
    'df.groupby("city")["price"].mean()',
    'df.groupby("year").agg({"cost": "mean"})',
    'df.groupby("year").agg({"price": "cost"})',
    'df.groupby("year").agg(most=("cost", "max"))',
    'df[df["year"].isin(["1999"])]["cost"]',
    'df[df["year"] == "x"]["cost"]',
    'df["price"] # "cost',
    'df[1 << "cost"]',
    'df["a": "mean"]',
    'df.query("cost > 3")',
    'df["price\\',
]


@pytest.mark.parametrize("code", GOOD, ids=range(len(GOOD)))
def test_right_code_is_accepted(code, tokenizer, call_id):
    ast.parse(code)
    assert unknown(code, LABELS) == []
    assert accepted(tokenizer, call_grammar(LABELS, call_id), [call_id, *tokenizer.encode(code)])


@pytest.mark.parametrize("code", BAD, ids=range(len(BAD)))
def test_wrong_code_is_refused(code, tokenizer, call_id):
    assert not accepted(tokenizer, call_grammar(LABELS, call_id), [call_id, *tokenizer.encode(code)])


@pytest.mark.parametrize("label", [*LABELS, "\x00\x7f\x85\u2028", "a" * 500, "\ud800"], ids=repr)
def test_a_label_of_any_characters_is_written_as_python_reads_it(label, tokenizer, call_id):
    grammar = call_grammar([label], call_id)
    source = json.dumps(label, ensure_ascii="\ud800" in label)
    assert ast.literal_eval(source) == label
    assert accepted(tokenizer, grammar, [call_id, *tokenizer.encode(f"df[{source}].mean()")])
    assert not accepted(tokenizer, grammar, [call_id, *tokenizer.encode(f"df[{source[:-1]}x{source[-1]}].mean()")])


def test_text_is_free_and_may_come_before_a_call(tokenizer, call_id):
    grammar = call_grammar(LABELS, call_id)
    text = tokenizer.encode('The "cost" isn\'t\nthere: df["cost"]')
    assert accepted(tokenizer, grammar, text)
    assert accepted(tokenizer, grammar, [*text, call_id, *tokenizer.encode('df["price"]')])
    assert not accepted(tokenizer, grammar, [*text, call_id, *tokenizer.encode('df["cost"]')])
    assert accepted(tokenizer, call_grammar(LABELS, None), text)
    assert not accepted(tokenizer, call_grammar(LABELS, None), [*text, call_id])


def test_tables_without_columns_or_with_many(tokenizer, call_id):
    code = tokenizer.encode('df["ratio"] = 3\ndf["ratio"].max()')
    assert accepted(tokenizer, call_grammar([], call_id), [call_id, *code])
    assert not accepted(tokenizer, call_grammar([], call_id), [call_id, *tokenizer.encode('df["price"]')])
    many = [f"column {index}" for index in range(2000)]
    assert accepted(tokenizer, call_grammar(many, call_id), [call_id, *tokenizer.encode('df["column 1999"].sum()')])
    assert accepted(tokenizer, call_grammar(list(NEW_LABELS), call_id), [call_id, *tokenizer.encode('df["ratio"]')])
