"""llguidance beside xgrammar: what a grammar costs to compile and to follow, and which constraints each holds to.

    python benchmarks/grammar.py

The grammars are a JSON schema (an address book's entry), a regular expression, and the columns of a table: ours in
llguidance's Lark with its conditions; for xgrammar, whose EBNF has none, a subscript and what may follow it. The large
vocabulary is the official one of Llama 3 (128,256 ids, from PyPI llama-models), the small one has 512 ids. Each side
runs in a process and a virtual environment of its own, on one thread; processes are interleaved, medians taken. `mask`
is microseconds for the allowed tokens of one step, over texts that follow the grammar. Then come the cases of schema
and text in which a side does not do what a validator does; "error" is a schema that it says it cannot follow.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers import machine, peer

ROUNDS = 3
SIDES = ("llguidance", "xgrammar")
COLUMNS = (
    "date",
    "region",
    "product",
    "units sold",
    "unit price",
    "discount",
    "channel",
    "rating",
    "returned",
    "margin",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "pattern": "^[a-z0-9.]{1,20}@[a-z]{2,12}[.](com|org)$"},
        "kind": {"enum": ["person", "company", "other"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 5},
    },
    "required": ["name", "age", "email", "kind", "tags"],
    "additionalProperties": False,
}
ENTRY = {"name": "Ada Lovelace", "age": 36, "email": "ada.l@engine.org", "kind": "person", "tags": ["maths", "x"]}
REGEX = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9](T[0-2][0-9]:[0-5][0-9])?"
TEXTS = {
    "schema": json.dumps(ENTRY, separators=(", ", ": ")),
    "regex": "2024-11-05T09:30",
    "columns": 'df["units sold"].groupby("region")["margin"].mean()',
}
CASES: list[tuple[Any, str, bool]] = [  # schema, text, whether it is valid
    ({"type": "integer", "minimum": 3, "maximum": 9}, "7", True),
    ({"type": "integer", "minimum": 3, "maximum": 9}, "12", False),
    ({"type": "number", "exclusiveMaximum": 1, "minimum": 0}, "0.5", True),
    ({"type": "number", "exclusiveMaximum": 1, "minimum": 0}, "1.0", False),
    ({"type": "integer", "multipleOf": 5}, "15", True),
    ({"type": "integer", "multipleOf": 5}, "16", False),
    ({"type": "string", "maxLength": 3}, '"abc"', True),
    ({"type": "string", "maxLength": 3}, '"abcd"', False),
    ({"type": "string", "minLength": 2}, '"a"', False),
    ({"type": "string", "pattern": "^a[0-9]+$"}, '"a12"', True),
    ({"type": "string", "pattern": "^a[0-9]+$"}, '"b1"', False),
    ({"type": "string", "pattern": "^a+$", "maxLength": 3}, '"aaaaa"', False),
    ({"type": "string", "format": "date"}, '"2024-02-01"', True),
    ({"type": "string", "format": "date"}, '"2024-13-01"', False),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, "[1, 2]", True),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, "[1, 2, 3]", False),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 1]", False),
    ({"type": "array", "contains": {"type": "integer"}}, '["a"]', False),
    ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, '{"b": 1}', False),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, "{}", False),
    ({"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1}, '{"a": 1, "b": 2}', False),
    (
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
        '{"x": 1}',
        False,
    ),
    ({"not": {"type": "string"}}, '"a"', False),
    ({"enum": ["größe", 'a"b']}, json.dumps('a"b'), True),
    ({"anyOf": [{"const": 1}, {"const": "x"}]}, '"y"', False),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "3", False),
    ({"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]}, "9", False),
    (
        {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}},
            "required": ["v"],
            "additionalProperties": False,
        },
        '{"v": 1, "next": {"v": 2}}',
        True,
    ),
]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--side", choices=SIDES)
    options.add_argument("--files", type=Path)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = options.parse_args()
    if chosen.side:
        print(json.dumps(measure(chosen.side, chosen.files)))
        return
    pythons = {
        "llguidance": peer("llguidance", ["llguidance"]),
        "xgrammar": peer("xgrammar", ["xgrammar"]),
    }
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), peer("llama-models", ["--no-deps", "llama-models"]))
        for _ in range(chosen.rounds):
            for side in SIDES:
                command = [str(pythons[side]), __file__, "--side", side, "--files", folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[side].append(json.loads(done.stdout.splitlines()[-1]))
    figures: dict[str, float] = {}
    for side, found in runs.items():
        for name in found[0]["times"]:
            figures[f"{side} {name}"] = round(statistics.median(one["times"][name] for one in found), 2)
    for label, value in figures.items():
        print(f"{label:56} {value:>12,}")
    cases = {side: found[0]["cases"] for side, found in runs.items()}
    for (schema, text, valid), *said in zip(CASES, *cases.values(), strict=True):
        if any(one != ("taken" if valid else "refused") for one in said):
            print(f"{json.dumps(schema)[:70]:72} {text:18} {'valid' if valid else 'not valid':10}", *said)
    print(json.dumps({"benchmark": "grammar", "figures": figures, "cases": cases, "machine": machine()}))


def write_files(folder: Path, llama_models: Path) -> None:
    """The vocabularies, tokens as base64, with the texts' ids, and our grammar of the columns."""
    from herd.model.formats.tokenizer_json import read_tokenizer_model
    from herd.model.tokenizer import train_tokenizer
    from herd.tools.columns import call_grammar

    (official,) = llama_models.parents[1].glob("lib/*/site-packages/llama_models/llama3/tokenizer.model")
    for name, words in (
        ("large", read_tokenizer_model(official)),
        ("small", train_tokenizer([Path(__file__).read_text() * 3], 512)),
    ):
        tokens = [base64.b64encode(words.token_bytes(token)).decode() for token in range(words.vocab_size)]
        ids = {kind: words.encode(text) for kind, text in TEXTS.items()}
        written = {"tokens": tokens, "special": sorted(words.special.values()), "ids": ids}
        (folder / f"{name}.json").write_text(json.dumps(written))
    rules = call_grammar(COLUMNS, 0).split("\n", 1)[1]  # their start calls by a token that is not wanted here
    start = (
        'start: "df[" label::0 "]" (".groupby(" label::0 ")[" label::0 "]")? ("." METHOD "()")?\nMETHOD: /mean|max/\n'
    )
    (folder / "columns.lark").write_text(start + rules)


def ebnf() -> str:
    """The columns in xgrammar's EBNF."""
    column = " | ".join(json.dumps(json.dumps(name)) for name in COLUMNS)
    rest = '("" | ".groupby(" column ")[" column "]") ("" | "." ("mean" | "max") "()")'
    return f'root ::= "df[" column "]" {rest}\ncolumn ::= {column}\n'


def measure(side: str, folder: Path) -> dict[str, Any]:
    times: dict[str, float] = {}
    cases: list[str] = []
    for name in ("small", "large"):
        vocabulary = json.loads((folder / f"{name}.json").read_text())
        tokens = [base64.b64decode(token) for token in vocabulary["tokens"]]
        make = llguidance_side if side == "llguidance" else xgrammar_side
        started = time.perf_counter()
        compile_one, follow, accepts = make(tokens, vocabulary["special"], (folder / "columns.lark").read_text())
        times[f"{name} vocabulary, s"] = time.perf_counter() - started
        for kind in TEXTS:
            started = time.perf_counter()
            compiled = compile_one(kind)
            times[f"{name} {kind} compile, ms"] = 1e3 * (time.perf_counter() - started)
            ids, steps = vocabulary["ids"][kind], []
            first = follow(compiled, ids)
            for _ in range(20):
                steps += follow(compiled, ids)
            times[f"{name} {kind} mask, us, median"] = 1e6 * statistics.median(steps)
            times[f"{name} {kind} mask, us, the worst of the first pass"] = 1e6 * max(first)
        if name == "small":
            cases = [accepts(schema, text) for schema, text, _ in CASES]
    return {"times": times, "cases": cases}


def llguidance_side(tokens: list[bytes], special: list[int], columns: str) -> Any:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer  # the same in our environment

    class Words:
        is_tokenizer_wrapper = True
        eos_token_id = bos_token_id = special[0]
        special_token_ids = special

        def __call__(self, text: Any) -> list[int]:
            data = text if isinstance(text, bytes) else text.encode()
            return [byte[bytes([value])] for value in data]

    Words.tokens = tokens  # pyright: ignore[reportAttributeAccessIssue]
    byte = {token: index for index, token in reversed(list(enumerate(tokens))) if len(token) == 1}
    words = LLTokenizer(Words(), eos_token=[special[0]])  # pyright: ignore[reportArgumentType]
    spaced = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
    grammars = {
        "schema": f"start: %json {json.dumps(SCHEMA | spaced)}",
        "regex": f"start: /{REGEX}/",
        "columns": columns,
    }

    def compile_one(kind: str) -> Any:
        matcher = LLMatcher(words, grammars[kind], log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def follow(compiled: Any, ids: list[int]) -> list[float]:
        matcher, seconds = compiled.deep_copy(), []
        for token in ids:
            started = time.perf_counter()
            np.frombuffer(matcher.compute_bitmask(), np.uint8)
            seconds.append(time.perf_counter() - started)
            assert matcher.consume_token(token)
        assert matcher.is_accepting()
        return seconds

    def accepts(schema: Any, text: str) -> str:
        matcher = LLMatcher(words, f"start: %json {json.dumps(schema | spaced)}", log_level=0)
        if matcher.is_error():
            return "error"
        taken = matcher.try_consume_tokens([byte[bytes([value])] for value in text.encode()])
        return "taken" if taken == len(text.encode()) and matcher.is_accepting() else "refused"

    return compile_one, follow, accepts


def xgrammar_side(tokens: list[bytes], special: list[int], columns: str) -> Any:
    import xgrammar  # pyright: ignore[reportMissingImports] (only in its peer's environment)

    information = xgrammar.TokenizerInfo(tokens, stop_token_ids=[special[0]])
    compiler = xgrammar.GrammarCompiler(information, max_threads=1, cache_enabled=False)
    mask = xgrammar.allocate_token_bitmask(1, len(tokens))
    spaced: dict[str, Any] = {"any_whitespace": False, "separators": (", ", ": "), "strict_mode": False}
    byte = {token: index for index, token in reversed(list(enumerate(tokens))) if len(token) == 1}

    def compile_one(kind: str) -> Any:
        if kind == "schema":
            return compiler.compile_json_schema(json.dumps(SCHEMA), **spaced)
        return compiler.compile_regex(REGEX) if kind == "regex" else compiler.compile_grammar(ebnf())

    def follow(compiled: Any, ids: list[int]) -> list[float]:
        matcher, seconds = xgrammar.GrammarMatcher(compiled), []
        for token in ids:
            started = time.perf_counter()
            matcher.fill_next_token_bitmask(mask)
            seconds.append(time.perf_counter() - started)
            assert matcher.accept_token(token)
        assert matcher.accept_token(special[0])
        return seconds

    def accepts(schema: Any, text: str) -> str:
        try:
            matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema), **spaced))
        except Exception:  # whatever it raises: it says that it cannot
            return "error"
        taken = all(matcher.accept_token(byte[bytes([value])]) for value in text.encode())
        return "taken" if taken and matcher.accept_token(special[0]) else "refused"

    return compile_one, follow, accepts


if __name__ == "__main__":
    main()
