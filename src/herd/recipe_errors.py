"""What is wrong with a recipe, said to somebody who wrote TOML: key, value and what is allowed, a line a problem."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

# pydantic's kinds of problem
EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a table"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "string_type": "a string",
    "finite_number": "a finite number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "string_pattern_mismatch": "text that matches {pattern}",
}


def explain(error: ValidationError, tables: dict[str, Any], root: type[BaseModel]) -> list[str]:
    """The problems that pydantic found in `tables` against the schema `root`, each as one line, none twice.

    A table that stands in a union with plain values says in its class variable `choices` what may stand there.
    """
    schema = _Schema(root)
    return list(dict.fromkeys(schema.line(problem) for problem in schema.meant(error, tables)))


class _Schema:
    """The tables of a schema by name, and those that a `kind` key tells apart by their kind."""

    def __init__(self, root: type[BaseModel]) -> None:
        self.root = root
        self.tables = {table.__name__: table for table in _tables(root)}
        self.kinds = {kind: table for table in self.tables.values() for kind in _kinds(table)}

    def meant(self, error: ValidationError, tables: dict[str, Any]) -> Iterator[Any]:
        """A union's problems of the branch that was meant: a table's, or else one that names all choices."""
        for problem in error.errors(include_url=False):
            loc = problem["loc"]
            cut = next((i for i, part in enumerate(loc) if self._names_a_branch(part)), None)
            if cut is None:
                yield problem
                continue
            value: Any = tables
            for part in loc[:cut]:
                value = cast(Any, value)[part]
            if (table := self.tables.get(str(loc[cut]))) is None:
                continue
            if isinstance(value, dict):
                yield problem
            else:
                expected = {"expected": getattr(table, "choices", "a table")}
                yield {"type": "union", "loc": loc[:cut], "input": value, "ctx": expected, "msg": ""}

    def line(self, problem: Any) -> str:
        """One problem as: key: what is wrong, and what is allowed."""
        loc = [part for part in problem["loc"] if not self._names_a_branch(part) and part not in self.kinds]
        key, kind, value, context = dotted(loc), problem["type"], problem.get("input"), problem.get("ctx", {})
        kinds = ", ".join(f"'{name}'" for name in self.kinds)
        if kind == "extra_forbidden":
            allowed = self._keys_at(problem["loc"][:-1])
            near = difflib.get_close_matches(str(loc[-1]), allowed, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            return f"{key}: unknown key; {hint}allowed here: {', '.join(allowed)}"
        if kind == "missing":
            return f"{key}: missing"
        if kind == "union_tag_not_found":
            return f"{key}.kind: missing; allowed: {kinds}"
        if kind == "union_tag_invalid":
            return f"{key}.kind: '{context['tag']}' is not allowed; allowed: {kinds}"
        if kind in ("literal_error", "union"):
            return f"{key}: {value!r} is not allowed; allowed: {context['expected']}"
        if kind in EXPECTED:
            shown = f"{len(value)} entries" if kind in ("too_short", "too_long") else repr(value)
            return f"{key}: {shown} is not allowed; allowed: {EXPECTED[kind].format(**context)}"
        message = problem["msg"].removeprefix("Value error, ")
        shown = "" if kind == "value_error" or isinstance(value, dict | list) else f" (here: {value!r})"
        return f"{key}: {message[:1].lower() + message[1:]}{shown}"

    def _names_a_branch(self, part: Any) -> bool:
        """Whether pydantic put this into a location for a branch of a union; it is no key of the file."""
        return isinstance(part, str) and (
            part in self.tables or part == "float" or part.startswith(("literal[", "constrained-", "function-"))
        )

    def _keys_at(self, loc: tuple[Any, ...]) -> list[str]:
        """Keys allowed in the table at a location."""
        here: list[type[BaseModel]] = [self.root]
        for part in loc:
            if isinstance(part, int):
                continue
            if named := self.tables.get(part) or self.kinds.get(part):
                here = [named]
                continue
            fields = [f for table in here for name, f in table.model_fields.items() if part in (name, f.alias)]
            here = [table for field in fields for table in _tables(field.annotation, deep=False)]
        return [field.alias or name for table in here for name, field in table.model_fields.items()]


def _tables(annotation: Any, deep: bool = True) -> list[type[BaseModel]]:
    """The tables that an annotation is made of and, where `deep`, those inside them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.values() if deep else ()
        return [annotation, *(table for field in fields for table in _tables(field.annotation))]
    return [table for part in get_args(annotation) for table in _tables(part, deep)]


def _kinds(table: type[BaseModel]) -> tuple[str, ...]:
    return get_args(table.model_fields["kind"].annotation) if "kind" in table.model_fields else ()


def dotted(parts: list[Any]) -> str:
    """A location as the person wrote it: data.source[2].kind (the third source)."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "recipe"
