"""A run comes in, the page that describes its model comes out: measured numbers, the recipe, how to use it.

Markdown with the YAML head that model hubs read. Only what was measured is in the table; folders of whoever
trained the model are not in the recipe.
"""

import json
from collections.abc import Mapping
from typing import Any

from scratchlm import __version__
from scratchlm.model import accounting
from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.train.folder import LoadedRun

_ROWS = (
    ("valid_loss", "validation loss, nats per token", "{:.4f}"),
    ("perplexity", "perplexity", "{:.3f}"),
    ("bits_per_byte", "bits per byte", "{:.4f}"),
    ("floor_loss", "the least loss that is possible on this text", "{:.4f}"),
    ("tokens", "tokens of training", "{:,}"),
    ("epochs", "passes over the text", "{:.2f}"),
    ("seconds", "seconds of training", "{:,.0f}"),
    ("tokens_per_second", "tokens per second", "{:,.0f}"),
    ("device", "device", "{}"),
    ("precision", "precision", "{}"),
)
"""Field of summary.json, its words, its form."""


def model_card(run: LoadedRun, *, usage: str) -> str:
    """Return the page.

    Args:
        run: The run.
        usage: Python or shell lines that open the files beside the page.
    """
    config, model = run.config, run.model.config
    sizes = {
        "parameters": f"{accounting.num_parameters(model):,}",
        "layers, width, heads (of keys)": f"{model.num_layers}, {model.d_model}, {model.num_heads} "
        f"({model.kv_heads})",
        "longest text in tokens": f"{model.context_length:,}",
        "vocabulary": f"{model.vocab_size:,}",
        "steps of training": f"{run.step:,}",
    }
    rows = [f"| {name} | {value} |" for name, value in sizes.items()]
    rows += [
        f"| {words} | {form.format(run.summary[key])} |"
        for key, words, form in _ROWS
        if run.summary.get(key) is not None
    ]
    recipe = json.dumps(without_folders(config.model_dump(mode="json")), indent=2, ensure_ascii=False)
    return "\n".join(
        [
            "---",
            "pipeline_tag: text-generation",
            "tags:",
            "- scratchlm",
            "---",
            f"# {config.name}",
            "",
            *([config.description, ""] if config.description else []),
            f"Made with scratchlm {__version__}. A text begins with `{END_OF_TEXT}`, as in training.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "## Use",
            "",
            usage.strip(),
            "",
            "## Recipe",
            "",
            "```json",
            recipe,
            "```",
            "",
        ]
    )


def without_folders(tree: Any) -> Any:
    """Return settings in which a path is its last name alone. Example: "/home/me/book.txt" -> "book.txt"."""
    if isinstance(tree, Mapping):
        return {key: without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_folders(value) for value in tree]
    if isinstance(tree, str) and tree.startswith(("/", "~/", "../", "./")):
        return tree.rstrip("/").rpartition("/")[2]
    return tree
