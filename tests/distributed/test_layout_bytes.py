"""What processes really hold and send, by hand and by torch, is what the tables of train/layouts.py say."""

import pytest
from together import run

from scratchlm.model import ModelConfig
from scratchlm.train.layouts import Layout, held, messages_of, sizes_of

SETTINGS = {"vocab_size": 601, "context_length": 32, "d_model": 48, "num_layers": 3, "num_heads": 4}
SIZES = sizes_of(ModelConfig(**SETTINGS), whole_bytes=4)

MEASURE = """
import json
import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode
from scratchlm.bench.parallel import ParallelCase, build, make_objective, random_batch
from scratchlm.distributed import Processes
from scratchlm.distributed.engine import ENGINES, Work
from scratchlm.optim import OPTIMIZERS

RING = {"allreduce_": 2, "broadcast_": 1, "reduce_": 1}
RING |= {"_allgather_base_": 1, "_reduce_scatter_base_": 1, "alltoall_base_": 1}
CPU = torch.device("cpu")

def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in tensors(part)]

class Sent(TorchDispatchMode):
    '''Adds up the bytes of every call to other processes, each by what a ring sends for it.'''
    total = 0.0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        library, _, name = operation._schema.name.partition("::")
        if library == "c10d":
            given = [tensors(a) for a in args[:2] if isinstance(a, torch.Tensor | list | tuple)]
            whole = max(sum(t.nbytes for t in group) for group in given)
            scripts = [a for a in args if isinstance(a, torch.ScriptObject)]
            size = next(g for g in map(size_of, scripts) if g)
            self.total += RING[name] * (size - 1) / size * whole
        return operation(*args, **(kwargs or {}))

def size_of(script):
    '''How many processes a group has; 0 for what is no group.'''
    try:
        return distributed.ProcessGroup.unbox(script).size()
    except RuntimeError:
        return 0

def num_bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1)  # not the step's number

processes = Processes.from_environment(timeout_seconds=120)
found = {}
for way in ("flat", "zero1", "zero2", "fsdp", "fsdp2"):
    case = ParallelCase(model="small", settings=%r, batch=2, world_size=processes.world_size, way=way)
    parallel, batch = build(way, make_objective(case, CPU)), random_batch(case, CPU, processes.rank)
    parallel.step(batch)
    with Sent() as sent:
        parallel.forward_backward(batch)
        parallel.finish()
        weights, gradients = num_bytes(parallel.parameters()), num_bytes(parallel.gradients())
        parallel.optimizer.step()
    found[way] = [weights, gradients, num_bytes(parallel.states()), sent.total]

for shards in {processes.world_size, 2}:  # the trainer's engine, blocks gathered in bfloat16; hybrid with 4
    case = case.model_copy(update={"precision": "bfloat16"})
    objective, batch = make_objective(case, CPU), random_batch(case, CPU, processes.rank)
    engine = ENGINES.build("fsdp2", shard_processes=shards)
    engine.wrap(Work(objective.model, objective, precision="bfloat16"), processes)
    rows = list(engine.named_parameters().values())
    optimizer = engine.make_optimizer(lambda groups: OPTIMIZERS.build("adamw", groups), [{"params": rows}])

    def micro_batch(last):
        with engine.accumulating(last=last):
            engine.loss(*batch).backward()

    engine.begin()
    micro_batch(True)
    engine.begin()
    with Sent() as sent:
        micro_batch(False)
        micro_batch(True)
        engine.finish()
        weights, gradients = num_bytes(rows), num_bytes([row.grad for row in rows])
        optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    states = num_bytes(value for value in states if isinstance(value, torch.Tensor))
    found[f"engine x{shards}"] = [weights, gradients, states, sent.total]
processes.close()
print(json.dumps(found))
"""


def layout(way, world_size):
    """The layout of one of the ways above."""
    if way.startswith("engine"):
        return Layout("fsdp2", world_size, int(way.partition("x")[2]))
    name = {"flat": "ddp", "fsdp": "fsdp2"}.get(way, way)
    return Layout(name, world_size, world_size if name == "fsdp2" else 1)


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_hold_and_send_what_the_tables_say(world_size):
    results = run(MEASURE % (SETTINGS,), world_size=world_size, seconds=300)
    for way in results[0]:
        made, engine = layout(way, world_size), way.startswith("engine")
        sizes = SIZES._replace(whole_bytes=2) if engine else SIZES
        parts = {part.name: part.num_bytes for part in held(made, sizes)}
        for place, (name, each) in enumerate([("weights", 4), ("gradients", 4), ("optimizer", 8)]):
            most = max(result[way][place] for result in results)
            # fully sharded tensors are cut by rows or filled up with zeros: a few numbers more than 1 / N
            padding = each * len(sizes.matrices) * 48 if made.name == "fsdp2" else 0
            assert 0 <= most - parts[name] <= padding, (way, name, most, parts[name])
        expected = messages_of(made, sizes).sent_bytes(2 if engine else 1)
        root = 4 * sizes.root * (made.sharers.size - 1) / made.sharers.size
        if way == "fsdp":  # ours gathers the root again for the backward pass
            expected += root
        # a 1 for each gradient travels along, and what fills up rows
        assert expected * (1 - 1e-6) <= results[0][way][3] <= expected * (1 + 1e-3 * world_size), way
