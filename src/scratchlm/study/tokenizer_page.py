"""Figures of one tokenizer or two come in, a page comes out: coloured text, languages, corpora, entries."""

from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.runtime import write_text_atomically
from scratchlm.study import pages
from scratchlm.study.tokenizer_figures import (
    Compression,
    Figures,
    Piece,
    language_samples,
    pieces,
    side_by_side,
    token_ratio,
)
from scratchlm.tokenizer import Tokenizer

NUM_COLOURS = 5
"""Backgrounds that take turns, so that the borders between tokens can be seen."""

SHOWN_CHARACTERS = 4000
"""Of a text that the page colours."""


class Row(NamedTuple):
    """One text: each tokenizer's compression, and the first's tokens for each of the second's."""

    name: str
    found: list[Compression]
    shares: list[float]
    ratio: float | None


class Coloured(NamedTuple):
    """One text as one tokenizer cuts it."""

    name: str
    num_tokens: int
    pieces: list[Piece]


def write_tokenizer_page(
    path: Path, figures: list[Figures], tokenizers: list[Tokenizer], text: str | None = None
) -> None:
    """Write the page of one tokenizer, or of two side by side.

    Args:
        path: HTML file to write, atomically.
        figures: What `examine` found for each tokenizer.
        tokenizers: The same tokenizers, to cut the text with.
        text: A text to colour; by default the first language's sample and two others.
    """
    write_text_atomically(path, pages.rendered("tokenizer.html.j2", _values(figures, tokenizers, text)))


def _values(figures: list[Figures], tokenizers: list[Tokenizer], text: str | None) -> dict[str, Any]:
    shown = text if text is not None else _default_text()
    shown = shown[:SHOWN_CHARACTERS]
    languages = [figure.languages for figure in figures]
    corpora = [figure.corpora for figure in figures]
    return {
        "figures": figures,
        "title": " and ".join(figure.name for figure in figures),
        "coloured": [
            Coloured(figure.name, sum(len(piece.ids) for piece in found), found)
            for figure, tokenizer in zip(figures, tokenizers, strict=True)
            for found in [pieces(tokenizer, shown)]
        ],
        "num_colours": NUM_COLOURS,
        "languages": _rows(languages),
        "corpora": _rows(corpora),
        "histograms": [_histogram(figure.lengths) for figure in figures],
    }


def _default_text() -> str:
    samples = {sample.name: sample.text for sample in language_samples()}
    return "\n\n".join(samples[name].splitlines()[0] for name in ("English", "German", "Russian", "Chinese"))


def _rows(found: list[list[Compression]]) -> list[Row]:
    best = max((one.bytes_per_token for each in found for one in each), default=1.0)
    rows = [
        Row(each[0].name, list(each), [one.bytes_per_token / best for one in each], token_ratio(each))
        for each in side_by_side(found)
    ]
    return sorted(rows, key=lambda row: -row.found[0].bytes_per_token)


def _histogram(lengths: list[int]) -> list[tuple[str, int, float]]:
    """Label, number of entries, share of the highest bar; 16 bytes and more together."""
    bars = [*lengths[1:16], *([0] * (16 - len(lengths))), sum(lengths[16:])]
    labels = [*(str(number) for number in range(1, 16)), "16+"]
    highest = max([*bars, 1])
    return [(label, bar, bar / highest) for label, bar in zip(labels, bars, strict=True)]
