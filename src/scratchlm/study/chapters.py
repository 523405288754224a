"""A run's record comes in, the report's chapters come out: figures, samples, tokenizer, model, commands.

Everything here is plain values and plain text; how it looks is the template's business, and escaping is too.
"""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.config import validate
from scratchlm.study import units
from scratchlm.study.run_record import Row, RunRecord, number, section


class Headline(NamedTuple):
    """One big figure of the header."""

    title: str
    value: str
    unit: str
    detail: str
    explanation: str


class Progress(NamedTuple):
    """How far the model came on the way from guessing to the floor."""

    guessing: float
    """Loss of a model that gives every token the same probability: ln(vocabulary)."""
    loss: float
    floor: float
    share: float
    """Part of the way that is done, 0 to 1."""


class Learning(NamedTuple):
    """What the learning curves show."""

    title: str
    """With its unit."""
    in_training: str
    """Its key in rows of training."""
    in_validation: str
    """Its key in validation rows."""
    last: str
    """The last validation's value."""
    about: str
    """What it is, in a sentence or two."""
    note: str
    """What to know of the picture."""


class TokenizerFacts(NamedTuple):
    """What the tokenizer learned."""

    lengths: list[int]
    """Bytes of each token, special tokens apart."""
    longest: list[str]
    special: list[str]
    problem: str


class Component(NamedTuple):
    """One row of the table of parameters."""

    name: str
    count: int
    share: float


class Command(NamedTuple):
    """A command to try next, and what it does."""

    purpose: str
    words: str


def loss_of(record: RunRecord) -> float | None:
    """The validation loss that the report speaks of: the last one; without a summary, the last row's."""
    for key in ("valid_loss", "best_valid_loss"):
        value = number(record.summary, key)
        if value is not None:
            return value
    return number(record.valid[-1], "loss") if record.valid else None


def learning_of(record: RunRecord) -> Learning:
    """The loss of pretraining."""
    return Learning(
        "loss, nats per token",
        "loss",
        "loss",
        units.decimal(loss_of(record)),
        "The loss says how surprised the model is by the right next token: 0 would be certainty, and each "
        "0.69 less means that the right token is twice as probable.",
        "The very first steps, which start at pure guessing, lie above the picture. The faint line is the "
        "training loss as it was measured, one batch at a time.",
    )


def headlines(record: RunRecord) -> list[Headline]:
    """The four figures of the header; those of a run without a summary come from its metrics."""
    return [_loss_headline(record), _bits_headline(record), _speed_headline(record), _time_headline(record)]


def _loss_headline(record: RunRecord) -> Headline:
    loss, floor = loss_of(record), number(record.summary, "floor_loss")
    details = []
    if loss is not None and floor is not None:
        details.append(f"{loss - floor:.3f} above the floor of {floor:.3f}")
    best = number(record.summary, "best_valid_loss")
    if best is not None and loss is not None and f"{best:.3f}" != f"{loss:.3f}":
        details.append(f"best along the way {best:.3f}")
    explanation = ""
    if loss is not None and math.isfinite(loss):
        explanation = (
            f"A loss of {loss:.2f} means: the model gives the right next token a probability of "
            f"e^-{loss:.2f} = {units.percent(math.exp(-loss))} on average."
        )
    return Headline("Validation loss", units.decimal(loss), "nats per token", ", ".join(details), explanation)


def _bits_headline(record: RunRecord) -> Headline:
    bits, floor = number(record.summary, "bits_per_byte"), number(record.summary, "floor_bits_per_byte")
    if bits is None and record.valid:
        bits = number(record.valid[-1], "bits_per_byte")
    explanation = ""
    if bits is not None and math.isfinite(bits) and bits > 0:
        explanation = (
            f"With this model, a compressor would need {bits:.2f} bits for a byte of text instead of 8: "
            f"{8 / bits:.1f} times smaller. Unlike the loss, it can be compared between tokenizers."
        )
    return Headline(
        "Bits per byte",
        units.decimal(bits),
        "",
        "" if floor is None else f"the floor is {floor:.3f}",
        explanation,
    )


def _speed_headline(record: RunRecord) -> Headline:
    speed = number(record.summary, "tokens_per_second")
    if speed is None and record.train:
        speed = number(record.train[-1], "tokens_per_second")
    words = [record.summary.get("device"), record.summary.get("precision")]
    words.append("compiled" if record.summary.get("compiled") is True else None)
    explanation = ""
    bytes_per_token = number(section(record.summary, "tokenizer"), "bytes_per_token")
    if speed and bytes_per_token and math.isfinite(speed * bytes_per_token):
        explanation = (
            f"While learning, the model read about {units.size(speed * bytes_per_token)} of text per second."
        )
    return Headline(
        "Training speed",
        units.count(speed),
        "tokens/s",
        ", ".join(str(word) for word in words if word),
        explanation,
    )


def _time_headline(record: RunRecord) -> Headline:
    last: Row = record.train[-1] if record.train else {}
    seconds, steps, tokens = (
        number(record.summary, key) if key in record.summary else number(last, alternative)
        for key, alternative in (("seconds", "seconds"), ("steps", "step"), ("tokens", "tokens"))
    )
    parameters = number(record.summary, "parameters")
    explanation = ""
    if parameters and tokens:
        each = tokens / parameters
        explanation = (
            f"{units.count(tokens)} tokens for {units.count(parameters)} parameters: "
            f"{units.count(each) if each >= 10 else f'{each:.1f}'} tokens for each parameter."
        )
    steps_text = f"{steps:,.0f} steps" if steps is not None else ""
    return Headline("Training time", units.duration(seconds), "", steps_text, explanation)


def progress_of(record: RunRecord) -> Progress | None:
    """How far the run came from guessing to the floor; None where one of the two is not known."""
    loss, floor = loss_of(record), number(record.summary, "floor_loss")
    vocab_size = number(section(record.summary, "tokenizer"), "vocab_size")
    if loss is None or floor is None or not vocab_size or not math.isfinite(loss) or vocab_size < 2:
        return None
    guessing = math.log(vocab_size)
    if guessing <= floor:
        return None
    return Progress(guessing, loss, floor, min(1.0, max(0.0, (guessing - loss) / (guessing - floor))))


def tokenizer_facts(record: RunRecord, *, num_longest: int = 16) -> TokenizerFacts:
    """What the run's tokenizer file tells; without one, the longest tokens that the summary lists."""
    from scratchlm.tokenizer import load_tokenizer

    path = record.folder / "tokenizer.scratchlm.json"
    listed = section(record.summary, "tokenizer").get("longest")
    longest = [str(text) for text in listed][:num_longest] if isinstance(listed, list) else []
    if not path.is_file():
        return TokenizerFacts([], longest, [], f"{path.name} is missing in this run folder.")
    try:
        tokenizer = load_tokenizer(path)
    except (ValueError, OSError) as error:
        return TokenizerFacts([], longest, [], f"{path.name} cannot be read: {error}")
    special = set(tokenizer.special_tokens.values())
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size) if token not in special]
    longest = [
        piece.decode("utf-8", errors="replace")
        for piece in sorted(pieces, key=len, reverse=True)[:num_longest]
    ]
    return TokenizerFacts(
        [len(piece) for piece in pieces if piece], longest, sorted(tokenizer.special_tokens), ""
    )


def model_components(record: RunRecord) -> list[Component]:
    """Parameters by component, by formula; empty where the model's settings are not known."""
    from scratchlm.model.accounting import count_parameters
    from scratchlm.model.config import ModelConfig

    settings = section(record.config, "model")
    vocab_size = settings.get("vocab_size") or section(record.summary, "tokenizer").get("vocab_size")
    if not settings or not vocab_size:
        return []
    try:
        counts = count_parameters(validate(ModelConfig, {**settings, "vocab_size": vocab_size}))
    except ValueError:
        return []  # settings of another version: the total in the summary is still shown
    counts = {name: value for name, value in counts.items() if name != "total" and value}
    total = sum(counts.values())
    return [Component(name.replace("_", " "), value, value / total) for name, value in counts.items()]


def model_facts(record: RunRecord) -> list[tuple[str, str]]:
    """The model's shape in a few words each, from its settings."""
    model = section(record.config, "model")
    shape = (
        ("layers", "num_layers"),
        ("width", "d_model"),
        ("heads", "num_heads"),
        ("context", "context_length"),
    )
    facts = [(name, f"{value:,.0f}") for name, key in shape if (value := number(model, key)) is not None]
    for name, key in (("positions", "position"), ("normalisation", "norm"), ("feed-forward", "feedforward")):
        part = model.get(key)
        part = part.get("name") if isinstance(part, Mapping) else part
        if part:
            facts.append((name, str(part)))
    return facts


def environment_facts(record: RunRecord) -> list[tuple[str, str]]:
    """What the run was made with; sizes in human units, unknown things left out."""
    return [
        (
            key.removesuffix("_bytes").replace("_", " "),
            units.size(value) if _is_size(key, value) else _value(value),
        )
        for key, value in record.environment.items()
        if value is not None
    ]


def _is_size(key: str, value: object) -> bool:
    return key.endswith("_bytes") and isinstance(value, int | float)


def settings_of(tree: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """A configuration as sections of dotted keys and values: {"optimizer": [("name", "adamw")]}."""
    sections: dict[str, list[tuple[str, str]]] = {"run": []}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            sections[key] = list(_flat(value))
        else:
            sections["run"].append((key, _value(value)))
    return {name: rows for name, rows in sections.items() if rows}


def _flat(tree: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{before}{key}.")
        else:
            rows.append((f"{before}{key}", _value(value)))
    return rows


def _value(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def next_commands(record: RunRecord) -> list[Command]:
    """What to try after this run, ready to be copied."""
    folder = shlex.quote(shown(record.folder))
    prompt = ' "Once upon a time"' if record.summary.get("corpus") in ("stories", "tinystories") else ""
    unfinished = not record.summary or record.summary.get("stopped_early") is True
    steps = number(record.summary, "steps") or 1000
    further = (
        Command("Go on from the last checkpoint", f"scratchlm train {folder} --resume")
        if unfinished
        else Command(
            "Train again with the same settings, for twice as long",
            f"scratchlm train {folder} train.steps={2 * steps:.0f}",
        )
    )
    return [
        Command(
            "Let the model write something new", f"scratchlm generate {folder}{prompt} --temperature 0.8"
        ),
        Command("Measure it over the whole validation split", f"scratchlm evaluate {folder}"),
        Command("Put what happens inside the model into this page", f"scratchlm report {folder} --inside"),
        further,
        Command("Do the same with your own text", "scratchlm run YOUR-OWN-TEXT.txt"),
    ]


def shown(folder: Path) -> str:
    """The folder as one would type it from here: relative where it lies below the working folder."""
    here = Path.cwd()
    absolute = folder.resolve()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(folder)
