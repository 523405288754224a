"""results/generate_*.jsonl and serve_*.jsonl -> the table of generation in README.md, between two markers.

Of several rows for the same measurement the last one counts. Run it after `bench_generate.py` and
`bench_serve.py`.
"""

import json
from pathlib import Path
from typing import Any

import readme_tables

RESULTS = Path(__file__).parent / "results"
BEGIN, END = (
    "<!-- generation table: made by benchmarks/generate_table.py -->",
    "<!-- end of generation table -->",
)

SHAPES = {
    "stories": "6 layers, d_model 256, 4 key heads of 8, vocabulary 4,096",
    "wide": "8 layers, d_model 512, 4 key heads of 8, vocabulary 8,192",
}

ENDS = {"answers": "answers", "wrong": "wrong", "lost": "lost"}


def rows_of(what: str) -> list[dict[str, Any]]:
    """All rows of one kind of measurement, oldest first."""
    found = [
        line
        for path in sorted(RESULTS.glob(f"{what}_*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [json.loads(line) for line in found]


def table() -> str:
    """The Markdown between the markers."""
    newest = {
        (row["setup"]["shape"], row["setup"]["texts"], row["candidate"]): row
        for row in rows_of("generate")
        if row["setup"].get("part") == "texts"
    }
    lines = ["| float32, greedy, 96 tokens | texts at once | `transformers` | scratchlm | ratio |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for shape, title in SHAPES.items():
        for texts in (1, 8):
            ours, theirs = (newest[shape, texts, name] for name in ("engine", "Hugging Face"))
            figures = f"{theirs['median']:,.0f} | {ours['median']:,.0f} | {ours['ratio']:.2f}x"
            lines.append(f"| {title} | {texts} | {figures} |")
    chances = [
        newest[shape, texts, "drawn"]["median"] / newest[shape, texts, "Hugging Face, drawn"]["median"]
        for shape in SHAPES
        for texts in (1, 8)
    ]
    last, load = next(iter(newest.values())), rows_of("serve")[-1]
    threads = "one thread" if last["setup"]["threads"] == 1 else f"{last['setup']['threads']} threads"
    clients, seconds = load["setup"]["clients"], load["setup"]["seconds"]
    ends = ", ".join(f"{load[name]:,} {words}" for name, words in ENDS.items())
    waits = " and ".join(f"{load[f'answer_seconds_p{p}']:.1f} s (p{p})" for p in (50, 99))
    lines += [
        "",
        f"Tokens a second, {threads}, {last['rounds']} rounds, {last['date']}. Drawn by chance with top_p, "
        f"in the table's order: {', '.join(f'{ratio:.2f}x' for ratio in chances)}. Served, eight slots, to "
        f"{clients} clients for {seconds:.0f} s, one in eight of which leaves in the middle: {ends}; "
        f"{load['tokens_per_second']:,.0f} tokens/s, an answer after {waits}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Put the table into the README."""
    readme_tables.put(BEGIN, END, table())


if __name__ == "__main__":
    main()
