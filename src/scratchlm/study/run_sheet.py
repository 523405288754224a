"""A run's record comes in, a sheet of lines for people comes out: result, data seen, model, machine, origin.

    sheet(record) -> {"Result": [("validation loss", "1.314", "best 1.310 at step 1,100"), ...], ...}

Lines whose figure is not recorded are left out; what was derived says in its detail from what.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from scratchlm.study import units
from scratchlm.study.compare import Facts, data_facts, facts
from scratchlm.study.run_record import Row, RunRecord, number, section

SHAPE = {
    "num_layers": "{} layers",
    "num_heads": "{} heads",
    "d_model": "width {}",
    "context_length": "context {}",
}
"""Setting of the model -> how its size is said."""

Sheet = dict[str, "list[Line]"]


class Line(NamedTuple):
    """One line: what, how much, and what that means or comes from."""

    name: str
    value: str
    detail: str = ""


def sheet(record: RunRecord) -> Sheet:
    """Everything that one would ask of a run, in groups."""
    one = facts(record)
    groups = {
        "Result": _result(record, one),
        "Training": _training(record, one),
        "Model": _model(record, one),
        "Machine": _machine(record),
        "Made with": _origin(record),
    }
    return {title: lines for title, lines in groups.items() if lines}


def data_seen(record: RunRecord) -> list[Line]:
    """How much a step read, how much all of them, and what that is of the corpus and of the model."""
    one, train, lines = facts(record), section(record.config, "train"), []
    batch, context = number(train, "batch_tokens"), number(section(record.config, "model"), "context_length")
    if batch and context:
        rows = f"{batch / context:,.0f} rows of {context:,.0f} tokens"
        lines.append(Line("effective batch", f"{batch:,.0f} tokens", rows))
    if one.tokens is not None:
        lines.append(Line("tokens seen", f"{one.tokens:,}"))
    if one.epochs is not None:
        size = data_facts(record.folder).get("train_tokens")
        lines.append(Line("epochs", f"{one.epochs:.2f}", f"of {size:,} training tokens" if size else ""))
    if one.tokens_per_parameter is not None:
        detail = "about 20 are compute-optimal"  # Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556
        lines.append(Line("tokens per parameter", f"{one.tokens_per_parameter:.1f}", detail))
    return lines


def _result(record: RunRecord, one: Facts) -> list[Line]:
    lines = []
    if one.loss is not None:
        best = min(record.valid, key=lambda row: number(row, "loss") or float("inf"), default={})
        where = f"best {one.best_loss:.4f} at step {best['step']:,}" if best and one.best_loss else ""
        lines.append(Line("validation loss", f"{one.loss:.4f}", where))
    floor = number(record.summary, "floor_loss")
    if floor is not None and one.loss is not None:
        lines.append(Line("above the floor", f"{one.loss - floor:.4f}", f"no model can beat {floor:.4f}"))
    if one.bits_per_byte is not None:
        lines.append(Line("bits per byte", f"{one.bits_per_byte:.4f}"))
    if (perplexity := number(record.summary, "perplexity")) is not None:
        lines.append(Line("perplexity", f"{perplexity:.2f}"))
    for kind, words in (("skip", "steps left out"), ("spike", "spikes"), ("rollback", "rollbacks")):
        steps = [row["step"] for row in _of_kind(record, kind)]
        if steps:
            lines.append(Line(words, str(len(steps)), f"the last at step {steps[-1]:,}"))
    return lines


def _training(record: RunRecord, one: Facts) -> list[Line]:
    lines = []
    if one.steps is not None:
        lines.append(
            Line("steps", f"{one.steps:,}", f"of {one.planned_steps:,}" if one.planned_steps else "")
        )
    lines += data_seen(record)
    optimizer = section(record.config, "optimizer")
    if optimizer:
        lines.append(Line("optimizer", str(optimizer.get("name")), _settings(optimizer)))
    schedule = section(record.config, "schedule")
    if schedule:
        lines.append(Line("schedule", str(schedule.get("name")), _settings(schedule)))
    if one.seconds is not None:
        lines.append(Line("training time", units.duration(one.seconds)))
    if one.tokens_per_second is not None:
        lines.append(Line("speed", f"{one.tokens_per_second:,.0f} tokens/s"))
    if one.seed is not None:
        lines.append(Line("seed", str(one.seed)))
    return lines


def _model(record: RunRecord, one: Facts) -> list[Line]:
    model, lines = section(record.config, "model"), []
    if one.parameters is not None:
        lines.append(Line("parameters", f"{one.parameters:,}"))
    words = [form.format(f"{size:,.0f}") for key, form in SHAPE.items() if (size := number(model, key))]
    if words:
        lines.append(Line("shape", ", ".join(words)))
    parts = [_part(model.get(key)) for key in ("norm", "position", "feedforward") if model.get(key)]
    if parts:
        lines.append(Line("parts", ", ".join(parts)))
    corpus, tokenizer = section(record.config, "corpus"), section(record.config, "tokenizer")
    if corpus:
        lines.append(Line("corpus", str(corpus.get("name")), _settings(corpus)))
    if tokenizer:
        size = number(section(record.summary, "tokenizer"), "vocab_size") or number(tokenizer, "vocab_size")
        lines.append(Line("tokenizer", str(tokenizer.get("name")), f"{size:,.0f} entries" if size else ""))
    return lines


def _machine(record: RunRecord) -> list[Line]:
    there, lines = record.environment, []
    device = [record.summary.get("device"), record.summary.get("precision")]
    device.append("compiled" if record.summary.get("compiled") is True else None)
    if any(device):
        lines.append(Line("device", ", ".join(str(word) for word in device if word)))
    if there.get("gpu"):
        lines.append(Line("GPU", str(there["gpu"])))
    if there.get("processor"):
        cores, threads = number(there, "cores"), number(there, "threads")
        counts = ((cores, "core"), (threads, "thread"))
        detail = ", ".join(f"{count:.0f} {name}{'s' if count > 1 else ''}" for count, name in counts if count)
        lines.append(Line("processor", str(there["processor"]), detail))
    if (memory := number(there, "memory_bytes")) is not None:
        lines.append(Line("memory", units.size(memory)))
    if (processes := number(record.summary, "world_size")) and processes > 1:
        lines.append(Line("processes", f"{processes:.0f}"))
    if there.get("platform"):
        lines.append(Line("system", str(there["platform"])))
    return lines


def _origin(record: RunRecord) -> list[Line]:
    names = (("scratchlm", "scratchlm"), ("commit", "commit"), ("Python", "python"), ("torch", "torch"),
             ("NumPy", "numpy"))  # fmt: skip
    lines = [Line(name, str(record.environment[key])) for name, key in names if record.environment.get(key)]
    lines += [
        Line("resumed", f"at step {row['step']:,}", _changes(row.get("changes")))
        for row in _of_kind(record, "resume")
    ]
    if record.summary.get("finished"):
        lines.append(Line("finished", str(record.summary["finished"])))
    return lines


def _of_kind(record: RunRecord, kind: str) -> list[Row]:
    """The rows of one kind, those that do not say their step left out."""
    return [row for row in record.events if row.get("kind") == kind and isinstance(row.get("step"), int)]


def _changes(changes: object) -> str:
    """Settings that were changed at a resume: {"train.steps": [100, 200]} -> "train.steps 100 -> 200"."""
    if not isinstance(changes, Mapping):
        return ""
    return ", ".join(
        f"{key} {value[0]} -> {value[1]}" if isinstance(value, list) and len(value) == 2 else f"{key} {value}"
        for key, value in changes.items()
    )


def _settings(part: Mapping[str, Any]) -> str:
    shown = (
        f"{key} {value}"
        for key, value in part.items()
        if key != "name" and value not in (None, []) and value is not False
    )
    return ", ".join(shown)


def _part(part: object) -> str:
    return str(part.get("name")) if isinstance(part, Mapping) else str(part)
