"""A study comes in, its batch sizes go out: 8, 16, 32, ... rows, up to the limits of memory and budget.

    memory    weights + gradients + optimizer + activations of all rows  <=  half of what a run may have
    budget    tokens / (rows * context_length)  >=  least_steps

The memory is the plan's estimate (train/memory.py) against all the memory that the machine has, not what is
free at the moment: the same machine gets the same sizes again. On a CPU runs go side by side, one per core,
and share it. Half of it is what the plan lets one micro-batch take as well (train/plan.py): more rows than
that are possible, but are computed in parts one after the other, and so are not faster.
"""

from typing import Any, NamedTuple

from scratchlm.lab.experiments import EXPERIMENTS
from scratchlm.lab.spec import Study

SETTING = "train.batch_tokens"
"""What a batch size sets."""
SHARE = 0.5
"""Of the memory that a run may have; as train/plan.py."""
ANY_LENGTH = 1_000_000
"""Steps while the number of steps is not known: a warm-up shall not be refused before."""


class BatchSizes(NamedTuple):
    """Sizes, and what limits them."""

    rows: list[int]
    context_length: int
    end: str
    """Why there are no more, as a sentence."""


def batch_sizes(study: Study) -> BatchSizes:
    """The sizes of a study with `rows`.

    Raises:
        ValueError: Its budget is not in tokens, or not even the first size is possible.
    """
    assert study.rows is not None, study
    if study.budget is None or study.budget.tokens is None:
        raise ValueError(f"{study.name}: rows compares equal tokens; give budget = {{ tokens = N }}.")
    if study.experiment != "train":
        raise ValueError(f"{study.name}: rows are of training runs; {study.experiment} has none.")
    words = [*study.settings, f"train.steps={ANY_LENGTH}"]
    config: Any = EXPERIMENTS.build("train").resolve(study.recipe, words)
    context, room = config.model.context_length, SHARE * memory_of_a_run(config.train.device)
    found, rows = [], study.rows.first
    while True:
        end = _limit(study, config, rows, room)
        if end:
            break
        found.append(rows)
        rows *= 2
    if not found:
        raise ValueError(f"{study.name}: rows.first={rows}: {end}")
    return BatchSizes(found, context, end)


def _limit(study: Study, config: Any, rows: int, room: float) -> str:
    """What forbids this size; empty where nothing does."""
    assert study.rows is not None, study
    assert study.budget is not None, study
    tokens = rows * config.model.context_length
    steps = (study.budget.tokens or 0) // tokens
    if steps < study.rows.least_steps:
        return (
            f"{rows:,} rows leave {steps} steps of {study.budget.tokens:,} tokens, fewer than "
            f"rows.least_steps={study.rows.least_steps}."
        )
    needed = memory_for(config, rows)
    if needed > room:
        return f"{rows:,} rows at once need {needed / 1e9:.3g} GB; there are {room / 1e9:.3g} GB for them."
    return ""


def memory_for(config: Any, rows: int) -> int:
    """Bytes that training takes with so many rows computed at once, by formula."""
    from scratchlm.runtime import choose_device, choose_precision
    from scratchlm.train import memory

    settings = config.model.with_vocabulary(int(config.tokenizer.settings.get("vocab_size", 256)))
    device = choose_device(config.train.device)
    on_cpu = device.type == "cpu"
    precision = choose_precision(config.train.precision, device).name
    activations = memory.estimated_activations(
        settings, micro_rows=rows, precision=precision, cached_logits=on_cpu
    )
    process = memory.PROCESS_BYTES if on_cpu else None
    parts = memory.training_parts(config, settings, activations, process_bytes=process)
    return sum(part.num_bytes for part in parts)


def memory_of_a_run(device: str) -> float:
    """Bytes that one run of several may have: a GPU's memory, or on a CPU one core's share of all."""
    import psutil
    import torch

    from scratchlm.runtime import choose_device, num_cores

    chosen = choose_device(device)
    if chosen.type == "cuda":
        return float(torch.cuda.get_device_properties(chosen).total_memory)
    return psutil.virtual_memory().total / num_cores()
