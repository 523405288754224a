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
from torch.utils._python_dispatch import TorchDispatchMode
from scratchlm.bench.parallel import ParallelCase, build, make_objective, random_batch
from scratchlm.distributed import Processes

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
            self.total += RING[name] * (processes.world_size - 1) / processes.world_size * whole
        return operation(*args, **(kwargs or {}))

def num_bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1)  # not the step's number

processes = Processes.from_environment(timeout_seconds=60)
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
processes.close()
print(json.dumps(found))
"""


def layout(way, world_size):
    """The layout of one of the ways of bench/parallel.py."""
    name = {"flat": "ddp", "fsdp": "fsdp2"}.get(way, way)
    return Layout(name, world_size, world_size if name == "fsdp2" else 1)


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_hold_and_send_what_the_tables_say(world_size):
    results = run(MEASURE % (SETTINGS,), world_size=world_size)
    num_tensors = len(SIZES.matrices)
    for way in results[0]:
        parts = {part.name: part.num_bytes for part in held(layout(way, world_size), SIZES, 1)}
        for place, (name, each) in enumerate([("weights", 4), ("gradients", 4), ("optimizer", 8)]):
            most = max(result[way][place] for result in results)
            # fully sharded tensors are cut by rows or filled up with zeros: a few numbers more than 1 / N
            padding = each * num_tensors * 48 if "fsdp" in way else 0
            assert 0 <= most - parts[name] <= padding, (way, name, most, parts[name])
        expected = messages_of(layout(way, world_size), SIZES).sent_bytes(1)
        if way == "fsdp":  # ours gathers the root again for the backward pass
            expected += 4 * SIZES.root * (world_size - 1) / world_size
        # a 1 for each gradient travels along, and what fills up rows
        assert results[0][way][3] == pytest.approx(expected, rel=2e-3), way
