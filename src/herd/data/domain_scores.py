"""Scores of whole domains: much personal data, or harmful and adult text, and all pages of a domain go (paper 3.1.1).

A document's filters see one page; a directory of people over ten thousand pages, or an adult site whose pages are
mostly clean, shows only in the sum. Sums are whole numbers, so parts add up to the same in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import NamedTuple

from herd.data.verdict import Verdict


@dataclass(frozen=True, slots=True)
class DomainCounts:
    """What was counted over the documents of a domain (`domains.site_of`); counts of parts add up."""

    documents: int = 0
    bytes: int = 0  # of text
    words: int = 0
    personal: int = 0  # `pii.Masked.personal`: e-mail addresses, phones, cards, accounts, ids
    personal_documents: int = 0  # with at least one item
    dirty: int = 0  # dirty words
    dirty_documents: int = 0  # that `word_lists.is_dirty` would drop

    def __add__(self, other: DomainCounts) -> DomainCounts:
        return DomainCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Thresholds(NamedTuple):
    """Above these a domain goes; ours, the paper names none.

    On documentation of ten projects (2,494 pages) the highest had 0.1 items of personal data per 1,000 bytes, and no
    dirty pages.
    """

    documents: int = 20  # fewer say little about a domain; its pages are judged one by one all the same
    personal_per_kb: float = 1.0  # items per 1,000 bytes of text
    personal_share: float = 0.5  # and in at least this share of its documents: a page of contacts is not a directory
    dirty_per_1000: float = 5.0  # words of a dirty list per 1,000 words
    dirty_share: float = 0.3  # of its documents


def merge(parts: Mapping[str, DomainCounts], into: dict[str, DomainCounts]) -> None:
    """Add the counts of one part to those of others."""
    for domain, counts in parts.items():
        into[domain] = into.get(domain, DomainCounts()) + counts


def verdicts(counts: Mapping[str, DomainCounts], thresholds: Thresholds | None = None) -> dict[str, Verdict]:
    """The domains that go, in the order of their names, each by the first rule it breaks."""
    limits = thresholds or Thresholds()
    found: dict[str, Verdict] = {}
    for domain in sorted(counts):
        one = counts[domain]
        if domain and one.documents >= limits.documents and (verdict := _judge(one, limits)):
            found[domain] = verdict
    return found


def _judge(one: DomainCounts, limits: Thresholds) -> Verdict | None:
    personal = 1000 * one.personal / max(1, one.bytes)
    if personal > limits.personal_per_kb and one.personal_documents >= limits.personal_share * one.documents:
        return Verdict("domain_personal_data", personal, limits.personal_per_kb)
    dirty = 1000 * one.dirty / max(1, one.words)
    if dirty > limits.dirty_per_1000:
        return Verdict("domain_dirty_words", dirty, limits.dirty_per_1000)
    share = one.dirty_documents / one.documents
    return Verdict("domain_dirty_pages", share, limits.dirty_share) if share > limits.dirty_share else None
