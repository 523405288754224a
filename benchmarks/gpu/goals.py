"""What is to be reached on one H200, and tables of what was: for the terminal and for the README.

    python -m benchmarks.gpu.goals FILE     keep FILE under benchmarks/results, write the README's table
    python -m benchmarks.gpu.goals          write the README's table from benchmarks/results

Without results the table has the goals and says that nothing was measured.
"""

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import readme_tables
from benchmarks.gpu.tiles import best_constants, best_tiles
from benchmarks.gpu.worker import ROOT, read_rows

Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- GPU table: made by benchmarks/gpu/goals.py -->", "<!-- end of GPU table -->"
OURS = ("triton", "triton_one_pass", "scratchlm")
"""Candidates that are judged, by the best of them; the others stand beside it."""
DEFAULTS = ("triton", "scratchlm")
"""Those of ours that the library takes by itself; another is named in the table."""


class Goal(NamedTuple):
    """A figure to be reached."""

    key: str
    """What rows name."""
    words: str
    figure: str
    """Which field: "ms", "rate", or "share" (of the bandwidth of a copy in the same run)."""
    unit: str
    goal: float
    stretch: float

    def reached(self, value: float, bound: float) -> bool:
        """Milliseconds are to be few, rates many."""
        return value <= bound if self.figure == "ms" else value >= bound


GOALS = (
    Goal("leaderboard", "attention forward+backward, 16 heads, T 16,384, d 64", "ms", "ms", 5.36, 4.9),
    Goal("forward-64-1k", "attention forward, d 64, T 1,024", "rate", "TFLOP/s", 290, 330),
    Goal("forward-64-16k", "attention forward, d 64, T 16,384", "rate", "TFLOP/s", 380, 430),
    Goal("forward-128-1k", "attention forward, d 128, T 1,024", "rate", "TFLOP/s", 330, 400),
    Goal("forward-128-16k", "attention forward, d 128, T 16,384", "rate", "TFLOP/s", 430, 550),
    Goal("backward-64-1k", "attention backward, d 64, T 1,024", "rate", "TFLOP/s", 190, 230),
    Goal("backward-64-16k", "attention backward, d 64, T 16,384", "rate", "TFLOP/s", 340, 400),
    Goal("cross-entropy", "cross-entropy with gradient, 65,536 x 50,304", "ms", "ms", 5.4, 5.0),
    Goal("rmsnorm-forward", "RMSNorm forward, share of a copy's rate", "share", "%", 85, 92),
    Goal("rmsnorm-backward", "RMSNorm backward, share of a copy's rate", "share", "%", 85, 92),
    Goal("rope-forward", "RoPE forward, share of a copy's rate", "share", "%", 85, 92),
    Goal("rope-backward", "RoPE backward, share of a copy's rate", "share", "%", 85, 92),
    Goal("adamw", "AdamW, 124 million float32 numbers", "ms", "ms", 0.95, 0.88),
    Goal("training", "training gpt2-small, compiled, bfloat16", "rate", "tokens/s", 450_000, 575_000),
)
"""Attention is causal, in bfloat16; 16,384 tokens a batch but in the first row."""
FASTER_THAN_TORCH = 1.1
"""Training against the plain model of the same run, with the fastest of torch's attention backends."""
MOST_SHOWN = 30
"""Broken rows in the report; the file has all."""


def value_of(goal: Goal, row: Row, rows: Sequence[Row]) -> float | None:
    """The figure of a row that a goal speaks of."""
    if row["status"] != "ok" or "ms" not in row:
        return None
    if goal.figure != "share":
        return row[goal.figure]
    copy = next((other.get("rate") for other in rows if other.get("ceiling") == "copy"), None)
    return 100 * row["rate"] / copy if copy else None


class Line(NamedTuple):
    """One goal and what was found."""

    words: str
    ours: str
    goal: str
    stretch: str
    verdict: str
    others: str


def lines(rows: Sequence[Row]) -> list[Line]:
    """One line for each goal and each shape that it was measured at."""
    found = []
    for goal in GOALS:
        mine = [row for row in rows if row.get("goal") == goal.key]
        shapes = list(dict.fromkeys(row.get("shape", "") for row in mine)) or [""]
        for shape in shapes:
            group = [row for row in mine if row.get("shape", "") == shape]
            words = f"{goal.words}, {shape}" if len(shapes) > 1 else goal.words
            found.append(_line(goal, words, group, rows))
    return found


def _best_of_ours(goal: Goal, group: Sequence[Row], rows: Sequence[Row]) -> Row | None:
    """The row that is judged; without a figure the first of ours, None without any."""
    ours = [row for row in group if row["candidate"] in OURS]
    figures = [(value, row) for row in ours if (value := value_of(goal, row, rows)) is not None]
    if not figures:
        return ours[0] if ours else None
    pick = min if goal.figure == "ms" else max
    return pick(figures, key=lambda pair: pair[0])[1]


def _line(goal: Goal, words: str, group: Sequence[Row], rows: Sequence[Row]) -> Line:
    ours = _best_of_ours(goal, group, rows)
    value = value_of(goal, ours, rows) if ours else None
    others = [
        f"{row['candidate']} {_number(other)}"
        for row in group
        if row is not ours and (other := value_of(goal, row, rows)) is not None
    ]
    bounds = (f"{_number(goal.goal)} {goal.unit}", _number(goal.stretch))
    if value is None:
        said = "not measured" if ours is None else ours["status"]
        return Line(words, said, *bounds, "", "; ".join(others))
    verdict = next(
        (
            word
            for word, bound in (("stretch", goal.stretch), ("goal", goal.goal))
            if goal.reached(value, bound)
        ),
        "missed",
    )
    named = "" if ours["candidate"] in DEFAULTS else f" ({ours['candidate']})"
    return Line(words, _number(value) + named, *bounds, verdict, "; ".join(others))


def _number(value: float) -> str:
    return (
        f"{value:,.0f}"
        if value >= 100
        else f"{value:.3g}"
        if value < 1
        else f"{value:.2f}".rstrip("0").rstrip(".")
    )


class Ratio(NamedTuple):
    """How many times as fast as what."""

    value: float
    over: str


def training_ratio(rows: Sequence[Row]) -> Ratio | None:
    """Tokens a second of ours over those of the plain model with the fastest of torch's backends."""
    rates = {row["candidate"]: row["rate"] for row in rows if row.get("goal") == "training" and "rate" in row}
    plain = {name: rate for name, rate in rates.items() if name.startswith("torch")}
    if "scratchlm" not in rates or not plain:
        return None
    fastest = max(plain, key=lambda name: plain[name])
    return Ratio(rates["scratchlm"] / plain[fastest], fastest)


def broken(rows: Sequence[Row]) -> list[Row]:
    """What went wrong; a check that was cut, is not there or has no row proves nothing, so it counts too."""
    return [
        row
        for row in rows
        if row["status"] in ("failed", "error", "crashed")
        or (row["part"].startswith("correctness") and row["status"] != "ok")
    ]


def memory_lines(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Tokens, our peak and the reference's, shortest first."""
    found: dict[int, dict[str, str]] = {}
    for row in rows:
        if row.get("goal") == "memory":
            text = f"{row['peak_bytes'] / 2**20:,.0f} MiB" if "peak_bytes" in row else row["status"]
            if row["status"] == "out of memory":
                text = f"out of memory: {row.get('score_bytes', 0) / 2**30:,.0f} GiB of scores"
            found.setdefault(row["tokens"], {})[row["candidate"]] = text
    return [
        (f"{tokens:,}", both.get("triton", ""), both.get("reference", ""))
        for tokens, both in sorted(found.items())
    ]


def report(setting: Row, rows: Sequence[Row]) -> str:
    """The table that ends the run, short enough for the last page of a log."""
    out = [
        "",
        f"{setting['device']}, torch {setting['torch']}, triton {setting['triton']}, {setting['date']}",
    ]
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        part = counts.setdefault(row["part"], {})
        part[row["status"]] = part.get(row["status"], 0) + 1
    out += [
        f"{part:22s} " + ", ".join(f"{n} {status}" for status, n in c.items()) for part, c in counts.items()
    ]
    wrong = broken(rows)
    out += [f"  {row['status']}: {row['case']}: {row.get('why', '')}"[:200] for row in wrong[:MOST_SHOWN]]
    out += [f"  and {len(wrong) - MOST_SHOWN} more"] if len(wrong) > MOST_SHOWN else []
    out += [_measured(row) for row in rows if "ceiling" in row and row["status"] == "ok"]
    if setting["device"] == "cpu":
        out.append("A rehearsal on a CPU: its figures mean nothing, and on a GPU nothing was measured.")
        rows = []
    out += ["", f"{'':58s} {'ours':>24s} {'goal':>16s} {'stretch':>8s}"]
    for line in lines(rows):
        out.append(
            f"{line.words[:58]:58s} {line.ours:>24s} {line.goal:>16s} {line.stretch:>8s} {line.verdict:8s} "
            + line.others
        )
    if ratio := training_ratio(rows):
        words = f"training, ours over {ratio.over}"
        out.append(f"{words:58s} {ratio.value:23.2f}x {FASTER_THAN_TORCH:>15}x")
    out += [
        _measured(row)
        for row in rows
        if row["status"] == "ok"
        and "ms" in row
        and not row.get("goal")
        and "ceiling" not in row
        and not row["part"].startswith("sweep")
    ]
    out += [
        f"memory at {tokens:>8s} tokens: ours {ours}, reference {naive}"
        for tokens, ours, naive in memory_lines(rows)
    ]
    for words, row in best_tiles(rows).items():
        out.append(f"tile of {words}: {row['tile']} is {row['gain']:.2f}x the table's {row['table_tile']}")
    for words, row in best_constants(rows).items():
        out.append(f"constants of {words}: {row['constants']} is {row['gain']:.2f}x {row['before']}")
    return "\n".join(out)


def _measured(row: Row) -> str:
    return f"{row['case'][:90]:90s} {row['ms']:9.3f} ms {row['rate']:9,.0f} {row['unit']}"


def newest_results() -> list[Row]:
    """All rows of the newest results file; empty if there is none. The first row is the setting."""
    files = sorted(RESULTS.glob("gpu_*.jsonl"), key=lambda path: path.stem[-7:])
    return list(read_rows(files[-1])) if files else []


def tables(found: Sequence[Row] | None = None) -> str:
    """The Markdown between the markers."""
    found = newest_results() if found is None else found
    setting, rows = (found[0], found[1:]) if found else ({}, [])
    device = setting.get("device", "one H200")
    head = f"| {device}, bfloat16 | ours | goal | stretch | torch's own, and others of ours |"
    out = [head, "| --- | ---: | ---: | ---: | --- |"]
    for line in lines(rows):
        ours = f"**{line.ours}**" if line.verdict in ("goal", "stretch") else line.ours
        out.append(f"| {line.words} | {ours} | {line.goal} | {line.stretch} | {line.others} |")
    ratio = training_ratio(rows)
    said, over = (f"{ratio.value:.2f}x", ratio.over) if ratio else ("not measured", "")
    words = "training, ours over torch's layers and its faster attention, compiled"
    out.append(f"| {words} | {said} | {FASTER_THAN_TORCH}x | | {over} |")
    out.append("")
    if not rows:
        return "\n".join([*out, "Not measured yet; `python -m benchmarks.gpu --out DIR` fills the table."])
    memory = memory_lines(rows)
    if memory:
        out += ["| attention's peak memory, tokens | ours | reference |", "| ---: | ---: | ---: |"]
        out += [f"| {tokens} | {ours} | {naive} |" for tokens, ours, naive in memory] + [""]
    out.append(_footnote(setting, rows))
    return "\n".join(out)


def _footnote(setting: Row, rows: Sequence[Row]) -> str:
    right = sum(row["status"] == "ok" for row in rows if row["part"].startswith("correctness"))
    return (
        f"{setting['device']}, torch {setting['torch']}, triton {setting['triton']}, CUDA {setting['cuda']}, "
        f"{setting['date']}, commit {setting['commit']}. Medians on random numbers, the cache emptied. "
        f"{right} of {setting['checks']} checks against float64 passed."
    )


def main(words: Iterable[str]) -> None:
    """Keep a results file, and put the table into the README."""
    from benchmarks.gpu.worker import find_source

    find_source()
    for word in words:
        shutil.copy(Path(word), RESULTS / Path(word).name)
    readme_tables.put(BEGIN, END, tables())


if __name__ == "__main__":
    main(sys.argv[1:])
