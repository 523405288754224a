r"""A training step comes in; every block of memory that it takes, with its life and its kind, goes out.

    block    = (bytes, made at, given back at, operation, part of the model)
    kind     = weights, optimizer      there before the step
               gradients               where a parameter's gradient lies after the backward pass
               activations             made in the forward pass and still alive at its end
               temporary               everything else

On a CPU the blocks are torch's profiler's allocation events; on a GPU they are the history that torch's
allocator keeps, the same that its memory viewer shows. Addresses tell what a block is: those of weights,
gradients and optimizer state are noted at the end of each phase.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from scratchlm.bench.cases import Workbench
from scratchlm.bench.clock import profiled_events
from scratchlm.bench.ranges import module_ranges, named_range
from scratchlm.hardware import synchronize
from scratchlm.runtime import replace_atomically

Kind = Literal["weights", "optimizer", "batch", "gradients", "activations", "temporary"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""From what stays to what goes: the order in which they are drawn on top of each other."""

MOST_ENTRIES = 1_000_000
"""Allocations and releases that the GPU's history keeps."""


class Block(NamedTuple):
    """A piece of memory from its allocation to its release."""

    num_bytes: int
    begin: int
    """Nanoseconds since the recording began."""
    end: int
    """The same; the end of the recording for what is alive then."""
    address: int
    made_by: str
    """The operation, or the line of code, that asked for it; of weights and states their name."""
    within: str = ""
    """Part of the model in whose forward pass it was made."""
    kind: Kind = "temporary"


class Phase(NamedTuple):
    """A part of a step on the time axis, in nanoseconds since the recording began."""

    name: str
    begin: int
    end: int


class Recording(NamedTuple):
    """All that happened to memory while some steps ran."""

    blocks: list[Block]
    phases: list[Phase]
    nanoseconds: int
    """Length of the recording."""


class Note(NamedTuple):
    """What lies at which addresses at a moment."""

    moment: int
    kind: Kind
    names: Mapping[int, str]
    """Address -> name."""


class _Diary:
    """Phases and notes, written down while steps run."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.phases: list[Phase] = []
        self.notes: list[Note] = []
        self.started = self.ended = 0

    def run(self, steps: int) -> None:
        """Run steps, phase by phase."""
        self.started = time.time_ns()
        for _ in range(steps):
            self.bench.run(self._phase)
        self.ended = time.time_ns()

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        synchronize(self.bench.device)
        begin = time.time_ns()
        with named_range(name, self.bench.device):
            yield
        synchronize(self.bench.device)
        self.phases.append(Phase(name, begin, time.time_ns()))
        if name == "backward":
            self.notes.append(Note(time.time_ns(), "gradients", gradients(self.bench.model)))
        elif name == "optimizer":
            self.notes.append(Note(time.time_ns(), "optimizer", states(self.bench)))


def record(bench: Workbench, *, steps: int = 2, snapshot: Path | None = None) -> Recording:
    """Run a step that warms up, then `steps` that are recorded.

    Args:
        bench: What to run.
        steps: How many.
        snapshot: On a GPU, a file for torch's own memory viewer (https://pytorch.org/memory_viz).

    Raises:
        ValueError: The device is neither a CPU nor a GPU with CUDA: torch tells nothing about its memory.
    """
    if bench.device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={bench.device}: its memory cannot be recorded; take cpu or cuda.")
    bench.run()
    bench.model.zero_grad(set_to_none=True)
    synchronize(bench.device)
    held = held_blocks(bench)
    diary = _Diary(bench)
    with module_ranges(bench.model, bench.device) if not bench.case.compiled else contextlib.nullcontext():
        if bench.device.type == "cuda":
            found = list(_cuda_blocks(diary, steps, snapshot))
        else:
            found = list(cpu_blocks(profiled_events(lambda: diary.run(steps))))
    return assemble([*held, *found], diary.phases, diary.notes, diary.started, diary.ended)


def assemble(
    blocks: Iterable[Block], phases: list[Phase], notes: list[Note], started: int, ended: int
) -> Recording:
    """Return the recording of blocks and phases given in absolute nanoseconds: kinds found, times from 0."""
    shifted = [Phase(phase.name, phase.begin - started, phase.end - started) for phase in phases]
    moments = [note._replace(moment=note.moment - started) for note in notes]
    forward = [phase for phase in shifted if phase.name == "forward"]
    made = []
    for block in blocks:
        begin = max(0, block.begin - started)
        end = min(ended, block.end or ended) - started
        if begin < ended - started and end > 0:
            made.append(_classified(block._replace(begin=begin, end=end), forward, moments))
    return Recording(made, shifted, ended - started)


def held_blocks(bench: Workbench) -> list[Block]:
    """Return what is there before a step: weights, optimizer state, the batch."""
    named: dict[Kind, dict[int, tuple[str, int]]] = {"weights": {}, "optimizer": {}, "batch": {}}
    for name, parameter in [*bench.model.named_parameters(), *bench.model.named_buffers()]:
        named["weights"].setdefault(*_storage(parameter, name))
    for name, state in _states(bench):
        named["optimizer"].setdefault(*_storage(state, name))
    for tensor in bench.batch:
        named["batch"].setdefault(*_storage(tensor, "token ids"))
    return [
        Block(num_bytes, 0, 0, address, name, "", kind)
        for kind, found in named.items()
        for address, (name, num_bytes) in found.items()
    ]


def gradients(model: torch.nn.Module) -> dict[int, str]:
    """Return the addresses of all gradients with the names of their parameters; some share one block."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found.setdefault(parameter.grad.untyped_storage().data_ptr(), []).append(name)
    return {address: ", ".join(names) for address, names in found.items()}


def states(bench: Workbench) -> dict[int, str]:
    """Return the addresses of the optimizer's tensors with their names."""
    return {tensor.untyped_storage().data_ptr(): name for name, tensor in _states(bench)}


def cpu_blocks(events: Iterable[Any]) -> Iterator[Block]:
    """Yield the blocks of torch's allocation events, in absolute nanoseconds; end 0 where none came.

    A release of what was there before the recording ends no block and is left out.
    """
    alive: dict[int, Block] = {}
    for event in sorted((e for e in events if e.name == "[memory]"), key=lambda e: e.start_time_ns):
        address, num_bytes = event.extra_fields.ptr, event.extra_fields.alloc_size
        if num_bytes < 0:
            if address in alive:
                yield alive.pop(address)._replace(end=event.start_time_ns)
            continue
        operation, part = _place(event.parent)
        alive[address] = Block(num_bytes, event.start_time_ns, 0, address, operation, part)
    yield from alive.values()


def trace_blocks(trace: Iterable[Mapping[str, Any]]) -> Iterator[Block]:
    """Yield the blocks of a GPU's allocation history, in absolute nanoseconds; end 0 where none came."""
    alive: dict[int, Block] = {}
    for entry in trace:
        moment = 1000 * entry["time_us"]
        if entry["action"] == "alloc":
            line = _line(entry.get("frames", ()))
            alive[entry["addr"]] = Block(entry["size"], moment, 0, entry["addr"], line)
        # a block is the program's until it asks to free it; the allocator may keep it longer
        elif entry["action"] == "free_requested" and entry["addr"] in alive:
            yield alive.pop(entry["addr"])._replace(end=moment)
    yield from alive.values()


def _cuda_blocks(diary: _Diary, steps: int, snapshot: Path | None) -> Iterator[Block]:
    memory, device = torch.cuda.memory, diary.bench.device
    memory._record_memory_history(max_entries=MOST_ENTRIES, stacks="python", device=device)
    try:
        diary.run(steps)
        found = memory._snapshot(device)
        if snapshot is not None:
            with replace_atomically(snapshot) as temporary:
                memory._dump_snapshot(str(temporary))
    finally:
        memory._record_memory_history(enabled=None, device=device)
    number = torch.cuda.current_device() if device.index is None else device.index
    yield from trace_blocks(found["device_traces"][number])


def _classified(block: Block, forward: list[Phase], notes: list[Note]) -> Block:
    if block.kind != "temporary":
        return block
    for note in notes:
        if block.address in note.names and block.begin <= note.moment < block.end:
            return block._replace(kind=note.kind, made_by=note.names[block.address])
    kept = any(phase.begin <= block.begin <= phase.end < block.end for phase in forward)
    return block._replace(kind="activations") if kept else block


def _place(event: Any) -> tuple[str, str]:
    """The outermost operation around an event below the innermost named range, and that range."""
    operation = ""
    while event is not None:
        scope = str(getattr(event.extra_fields, "scope", ""))
        if scope.endswith("USER_SCOPE"):
            return operation or event.name, event.name
        operation = event.name.removeprefix("autograd::engine::evaluate_function: ")
        event = event.parent
    return operation, ""


def _line(frames: Iterable[Mapping[str, Any]]) -> str:
    """The innermost line of ours: "model/attention.py:87 forward"; without one the innermost of all."""
    shown = [
        (frame["filename"].replace("\\", "/"), frame["line"], frame["name"])
        for frame in frames
        if frame["filename"] != "??"
    ]
    ours = [frame for frame in shown if "/scratchlm/" in frame[0] and "/bench/" not in frame[0]]
    if not ours and not shown:
        return "autograd"
    path, number, name = (ours or shown)[0]
    return f"{'/'.join(path.split('/')[-2:])}:{number} {name}"


def _states(bench: Workbench) -> Iterator[tuple[str, torch.Tensor]]:
    names = {id(parameter): name for name, parameter in bench.model.named_parameters()}
    for parameter, state in bench.optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.device.type == bench.device.type:
                yield f"{key} of {names.get(id(parameter), 'a group')}", value


def _storage(tensor: torch.Tensor, name: str) -> tuple[int, tuple[str, int]]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), (name, storage.nbytes())
