"""How many characters and bytes of each language one token of a tokenizer holds, side by side: table and picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from herd.console import HerdError, human_bytes, progress, say
from herd.data.extract import extract
from herd.data.language import identify, languages
from herd.data.readers import Skipped, Unavailable, read_folder
from herd.model.formats.tokenizer_json import HUGGING_FACE, META, NOTE, load_any_tokenizer
from herd.model.tokenizer import Tokenizer
from herd.recipe_data import Folder

MAX_BARS = 24  # languages in the picture; more can't be read
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")  # Okabe and Ito's
_CODE = re.compile(r"([a-z]{2,3})([-_][A-Za-z]{2,4})?")


@dataclass
class Measured:
    """What was read of one language: each tokenizer's tokens of it, its documents, characters and UTF-8 bytes."""

    tokens: list[int]
    documents: int = 0
    characters: int = 0
    bytes: int = 0

    def characters_per_token(self, index: int) -> float:
        return self.characters / max(1, self.tokens[index])

    def bytes_per_token(self, index: int) -> float:
        return self.bytes / max(1, self.tokens[index])


def compare_tokenizers(paths: Sequence[Path], folder: Path, picture: Path) -> None:
    """Print the table for the text files under a folder and draw the picture.

    Raises HerdError where a tokenizer can't be read, there are no texts, or the picture's name is not one of a PNG.
    """
    if picture.suffix.lower() != ".png":
        raise HerdError(f"--picture {picture}: expected a name that ends in .png")
    tokenizers = {name: load_any_tokenizer(path) for name, path in zip(names(paths), paths, strict=True)}
    measured = measure(tokenizers, folder)
    _print_table(tokenizers, measured, folder)
    draw(list(tokenizers), measured, picture)
    print(f"picture: {picture}")


def names(paths: Sequence[Path]) -> list[str]:
    """What to call each tokenizer: the end of its path, as much as tells them apart, and never just a usual name."""
    usual = {NOTE, HUGGING_FACE, META, "tokenizer"}
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(some[-length - (some[-1] in usual) :]) for some in parts]
        if len(set(found)) == len(found):
            return found
    raise HerdError("a tokenizer is given twice; expected different ones")


def measure(tokenizers: Mapping[str, Tokenizer], folder: Path) -> dict[str, Measured]:
    """Language code -> what was measured, the language with the most characters first.

    Where all subfolders are named by codes of languages (de, pt-BR), they name the language of what is in them.
    Otherwise it is identified from the text, a document at a time. Raises HerdError where there is no text.
    """
    by_folder = languages_of_subfolders(folder)
    measured: dict[str, Measured] = {}
    skipped = Skipped()
    try:
        with progress("encoding") as bar:
            for document in read_folder(Folder(kind="folder", name="texts", path="."), folder, skipped):
                try:
                    text = extract(document.content, document.media).text
                except UnicodeError:
                    skipped["not text"] += 1
                    continue
                if not text:
                    skipped["empty"] += 1
                    continue
                language = by_folder.get(document.path.partition("/")[0]) or identify(text)[0]
                found = measured.setdefault(language, Measured([0] * len(tokenizers)))
                found.documents += 1
                found.characters += len(text)
                found.bytes += len(text.encode())
                for index, tokenizer in enumerate(tokenizers.values()):
                    found.tokens[index] += len(tokenizer.encode(text))
                bar.update(sum(one.documents for one in measured.values()), "documents")
    except Unavailable as error:
        raise HerdError(f"--on: {error}") from None
    if left := ", ".join(f"{count:,} {why}" for why, count in sorted(skipped.items()) if count):
        say(f"left out: {left}")
    if not measured:
        raise HerdError(f"--on {folder}: no texts; expected txt, md, rst, html, py, csv, jsonl or parquet files")
    return dict(sorted(measured.items(), key=lambda item: (-item[1].characters, item[0])))


def languages_of_subfolders(folder: Path) -> dict[str, str]:
    """Subfolder -> language without its country, if all subfolders are named by languages; else nothing."""
    if not folder.is_dir():
        return {}
    inside = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    codes = {name: match[1] for name in inside if (match := _CODE.fullmatch(name)) and match[1] in languages()}
    return codes if len(codes) == len(inside) else {}


def _print_table(tokenizers: Mapping[str, Tokenizer], measured: Mapping[str, Measured], folder: Path) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("language", no_wrap=True)
    for column in ("docs", "text"):
        table.add_column(column, justify="right", no_wrap=True)
    for number, (name, tokenizer) in enumerate(tokenizers.items(), 1):
        console.print(f"{number}: {name}, {tokenizer.vocab_size:,} tokens", markup=False, highlight=False)
        for column in (f"{number} chars", "bytes", *(["ratio"] if number > 1 else [])):
            table.add_column(column, justify="right", no_wrap=True)
    for language, one in measured.items():
        row = [language, f"{one.documents:,}", human_bytes(one.bytes)]
        for index in range(len(tokenizers)):
            row += [f"{one.characters_per_token(index):.3f}", f"{one.bytes_per_token(index):.3f}"]
            if index:
                row.append(f"{one.characters_per_token(index) / one.characters_per_token(0):.3f}")
        table.add_row(*row)
    title = f"{folder}: characters and bytes per token; ratio: characters to those of tokenizer 1"
    console.print(title, markup=False, highlight=False)
    console.print(table)


def draw(labels: Sequence[str], measured: Mapping[str, Measured], picture: Path) -> None:
    """Bars of characters per token, a group for each of the languages with the most text, as a PNG."""
    from matplotlib.figure import Figure

    shown = list(measured.items())[:MAX_BARS]
    inches = 1.2 + len(shown) * (0.15 + 0.2 * len(labels))
    figure = Figure(figsize=(max(6.4, inches), 4 + 0.2 * len(labels)), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(labels)
    for index, label in enumerate(labels):
        places = [group + (index - (len(labels) - 1) / 2) * width for group in range(len(shown))]
        heights = [one.characters_per_token(index) for _, one in shown]
        name = f"{index + 1}: {label}"
        bars = axes.bar(places, heights, width * 0.92, label=name, color=COLOURS[index % len(COLOURS)])
        if len(labels) <= 3:  # else the numbers run into each other
            axes.bar_label(bars, fmt="%.1f", fontsize=6.5, color="#555555", padding=1)
    axes.set_xticks(range(len(shown)), [f"{language}\n{_short(one.characters)}" for language, one in shown])
    axes.set_xlim(-0.6, max(4, len(shown)) - 0.4)
    axes.set_xlabel("language, and characters of text measured")
    axes.set_ylabel("characters per token (more is better)")
    left_out = f", the {len(shown)} of {len(measured)} languages with the most text" if len(measured) > MAX_BARS else ""
    axes.set_title(f"What a token holds{left_out}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower left", frameon=False, ncols=1)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


def _short(count: float) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{max(1, round(count / 1e3))}K"
