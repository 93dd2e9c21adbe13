"""Why a document or a whole domain is dropped, as every rule says it and the books note it."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """The rule that drops a document or a domain: what it measured and where its limit was."""

    rule: str
    score: float
    threshold: float
