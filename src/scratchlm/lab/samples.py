"""Run folders of a study come in, what each cell's model writes goes out, to be read side by side.

One text for each label: the last of samples.jsonl, from the first seed that came to its end. All began with
the same prompt and were drawn with the same settings, unless the cells say otherwise. On a corpus whose facts
can be checked, the count of facts that agree stands beside the text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scratchlm.lab.rows import Result
from scratchlm.study.pages import visible
from scratchlm.study.run_record import read_run

MOST_CHARACTERS = 700
"""Of a text on the page: about a story of the embedded corpus; the whole is in samples.jsonl."""
OPEN_CELLS = 8
"""The texts of more cells are folded away: they would bury what follows."""


class Written(NamedTuple):
    """What the model of one cell wrote."""

    label: str
    number: str
    """The cell's metric in that run, as text."""
    prompt: str
    text: str
    """Without the prompt, cut at MOST_CHARACTERS."""
    facts: str
    """How many facts agree, in words; empty where nobody can tell."""


def read_samples(folder: Path, results: Sequence[Result], metric: str) -> list[Written]:
    """The last sample of each label, in the order of the rows."""
    found = {}
    for result in results:
        run = folder / "cells" / result.cell
        if result.label in found or result.state != "finished" or not (run / "samples.jsonl").is_file():
            continue
        record = read_run(run)
        if record.samples:
            between = (
                "\n\n" if record.summary.get("posttrain") else ""
            )  # an answer does not go on with the question
            found[result.label] = _written(result, metric, record.samples[-1], between)
    return list(found.values())


def samples_markdown(samples: Sequence[Written], unit: str) -> str:
    """The section in Markdown, empty where nothing was written."""
    if not samples:
        return ""
    parts = ["## What they write"]
    for one in samples:
        quoted = "\n".join(f"> {line}".rstrip() for line in _escaped(one.prompt + one.text).split("\n"))
        facts = f", {one.facts}" if one.facts else ""
        parts.append(f"**{one.label}** ({one.number} {unit}{facts})\n\n{quoted}")
    return "\n\n".join(parts)


def _written(result: Result, metric: str, sample: dict, between: str) -> Written:
    prompt, text = str(sample.get("prompt") or ""), str(sample.get("text") or "")
    rest = text.removeprefix(prompt)
    shown = rest if len(rest) <= MOST_CHARACTERS else f"{rest[:MOST_CHARACTERS].rstrip()} ..."
    value, facts = result.metric(metric), sample.get("consistency") or {}
    words = ""
    if facts.get("num_facts"):
        words = f"{facts['num_consistent']} of {facts['num_facts']} facts agree"
    return Written(result.label, "" if value is None else f"{value:.3f}", prompt + between, shown, words)


def _escaped(text: str) -> str:
    """Text as Markdown shows it letter by letter; a control character would make the file a binary one."""
    text = visible(text)
    for character in "\\`*_#<>[]|":
        text = text.replace(character, f"\\{character}")
    return text
