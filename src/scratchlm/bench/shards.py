r"""Ways of sharding come in; what the fullest process holds, beside the formula, and step times go out.

    bytes for P numbers among N processes, float32, AdamW

                 parameters    gradients     optimizer state    sent a step, unit 4 P (N - 1) / N
    bucketed     4 P           4 P           8 P                2   (all-reduce of the gradients)
    zero1        4 P           4 P           8 P / N            3   (and the parameters once)
    zero2        4 P           4 P / N       8 P / N            2   (gradients to owners, parameters back)
    fsdp         4 P / N       4 P / N       8 P / N            3   (parameters twice, gradients once)

Parameters and state are counted between two steps, gradients just before the optimizer's, every storage once:
what a process *holds*. The peak is the most that is alive at once during a step, with activations, whole
weights that are borrowed and buckets on their way. Zero 1 and 2 deal out whole parameters, so the fullest
process has somewhat more than the formula's share. Then all ways take turns; `fsdp2` is torch's fully_shard,
cut like ours, and the ratio of the two comes from the same rounds.

Source: Rajbhandari et al. 2020, "ZeRO", https://arxiv.org/abs/1910.02054, section 3 (without its float16
copies); Stanford CS336, assignment 2, optimizer_state_sharding_accounting and fsdp_accounting.
"""

import statistics
from collections.abc import Iterable

import torch
from torch import Tensor, distributed

from scratchlm.bench import clock
from scratchlm.bench.ddp import take_turns
from scratchlm.bench.group import Report
from scratchlm.bench.parallel import (
    Parallel,
    ParallelCase,
    ParallelGroup,
    build,
    device_of,
    make_objective,
    random_batch,
    title,
)
from scratchlm.bench.tables import Table, milliseconds, size
from scratchlm.config import Config
from scratchlm.distributed.process import Processes
from scratchlm.model import accounting

FLOAT32 = 4
"""Bytes of a number."""
STATE_BYTES = 8
"""AdamW's two numbers for each parameter."""


class Held(Config):
    """Bytes of one process."""

    parameters: float
    gradients: float
    states: float

    @property
    def all(self) -> float:
        """All three."""
        return self.parameters + self.gradients + self.states


class ShardsResult(Config):
    """One way, weighed alone and timed beside the others."""

    case: ParallelCase
    num_parameters: int
    held: Held
    """Of the fullest process."""
    foretold: Held
    """By the formula."""
    peak_bytes: int | None = None
    """The most alive at once during a step."""
    rounds: int
    step_ms: float
    ratio: float
    """To the first way's step, round by round."""
    ratio_to_fsdp2: float | None = None
    """To torch's fully_shard, round by round."""


CASE, RESULT = ParallelGroup, ShardsResult
"""As in ddp.py."""


def formula(way: str, num_parameters: int, world_size: int) -> Held:
    """Return what a process holds. Example: zero1, 100, 4 -> 400, 400 and 200 bytes.

    Args:
        way: One of SHARDED_WAYS.
        num_parameters: P, all of them trained.
        world_size: N.
    """
    whole, share = num_parameters, num_parameters / world_size
    parameters = share if way in ("fsdp", "fsdp2") else whole
    gradients = share if way in ("zero2", "fsdp", "fsdp2") else whole
    states = share if way in ("zero1", "zero2", "fsdp", "fsdp2") else whole
    return Held(parameters=FLOAT32 * parameters, gradients=FLOAT32 * gradients, states=STATE_BYTES * states)


def candidates(case: ParallelCase, ways: Iterable[str]) -> ParallelGroup:
    """Return what is weighed and takes turns; the first way is what the others are compared with."""
    return ParallelGroup(cases=tuple(case.model_copy(update={"way": way}) for way in dict.fromkeys(ways)))


def work(group: ParallelGroup, processes: Processes, report: Report) -> None:
    """Weigh each candidate alone, then let all take turns; on every process."""
    device = device_of(processes)
    batch = random_batch(group.cases[0], device, processes.rank)

    def start(case: ParallelCase) -> Parallel:
        return build(case.way, make_objective(case, device), bucket_mb=case.bucket_mb)

    weighed = []
    for case in group.cases:
        report({"next": f"weighing {case.way}"})
        weighed.append(weigh(start(case), batch, device))
        clock.free(device, collect=True)  # a wrapper and its hooks refer to each other
    built = [start(case) for case in group.cases]
    report({"next": "warming up"})
    for way in built:
        for _ in range(group.warmup):
            way.step(batch)
    seconds = take_turns([lambda way=way: way.step(batch) for way in built], group, device, report)
    for case, (held, peak), times in zip(group.cases, weighed, seconds, strict=True):
        count = accounting.num_parameters(case.settings)
        names = [other.way for other in group.cases]
        peer = seconds[names.index("fsdp2")] if "fsdp2" in names else None
        found = ShardsResult(
            case=case,
            num_parameters=count,
            held=held,
            foretold=formula(case.way, count, case.world_size),
            peak_bytes=peak,
            rounds=group.rounds,
            step_ms=1e3 * statistics.median(times),
            ratio=_ratio(times, seconds[0]),
            ratio_to_fsdp2=_ratio(times, peer) if peer else None,
        )
        report(found.model_dump(mode="json"))


def weigh(way: Parallel, batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Held, int | None]:
    """Return what the fullest process holds and the peak of a step; all processes call it."""
    way.step(batch)  # makes the optimizer's state
    way.forward_backward(batch)
    way.finish()
    gradients = _bytes(way.gradients())
    way.optimizer.step()
    held = [_bytes(way.parameters()), gradients, _bytes(way.states())]
    memory = clock.weigh(
        lambda: way.step(batch), device, held=[*way.parameters(), *way.states(), *way.gradients()]
    )
    most = torch.tensor([*held, memory.peak if memory else -1], dtype=torch.int64, device=device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    parameters, gradients, states, peak = most.tolist()
    return Held(parameters=parameters, gradients=gradients, states=states), peak if peak >= 0 else None


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Without single numbers: some optimizers count steps in tensors."""
    return clock.storage_bytes(tensor for tensor in tensors if tensor.ndim)


def _ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def tables(results: list[ShardsResult]) -> list[Table]:
    """Return a table of bytes, measured / by the formula, and one of times."""
    if not results:
        return []
    about = title(results[0].case)
    weighed = [
        [
            result.case.way,
            *(
                f"{size(found)} / {size(foretold)}"
                for found, foretold in (
                    (result.held.parameters, result.foretold.parameters),
                    (result.held.gradients, result.foretold.gradients),
                    (result.held.states, result.foretold.states),
                    (result.held.all, result.foretold.all),
                )
            ),
            "" if result.peak_bytes is None else size(result.peak_bytes),
        ]
        for result in results
    ]
    header = ["way", "parameters", "gradients", "optimizer state", "all three", "peak of a step"]
    timed = [
        [
            result.case.way, f"{milliseconds(result.step_ms)} ms", f"{result.ratio:.2f}x",
            f"{result.ratio_to_fsdp2:.2f}x" if result.ratio_to_fsdp2 and "fsdp" in result.case.way else "",
        ]
        for result in results
    ]  # fmt: skip
    return [
        Table(f"{about}: fullest process / formula", header, weighed, 1),
        Table("Steps in turns", ["way", "step", f"to {results[0].case.way}", "to fsdp2"], timed, 1),
    ]
