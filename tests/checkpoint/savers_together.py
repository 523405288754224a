"""Several savers of one checkpoint in threads of one process: fast enough for every claim."""

import threading

import torch

from scratchlm.checkpoint import Coordinator, Piece, Saver


def new_store():
    """A store for one test: within a process; real processes have one over the network."""
    from torch.distributed import HashStore

    return HashStore()


def rows_of(whole, rank, world_size):
    """Equal shares of a tensor's rows, as FSDP2 cuts them: the last may be empty."""
    share = -(-len(whole) // world_size)
    first = min(rank * share, len(whole))
    return Piece(whole[first : first + share].clone(), first, len(whole))


def whole_tensors(step):
    """What the model is after a step: shapes that no number of processes divides."""
    draw = torch.Generator().manual_seed(step)
    model = {"embeddings": torch.randn(37, 5, generator=draw), "norm": torch.randn(3, generator=draw)}
    moments = {"0.m": torch.randn(37, 5, generator=draw), "0.step": torch.tensor(float(step))}
    return {"model": model, "optimizer": moments, "random": {"torch": torch.arange(step, step + 9)}}


def tensors_of(step, rank, world_size, how="fsdp2"):
    """What process `rank` gives: shards and what it alone has (fsdp2), or everything (ddp)."""
    whole = whole_tensors(step)
    if how == "ddp":
        return whole
    shards = {name: rows_of(tensor, rank, world_size) for name, tensor in whole["model"].items()}
    moments = {"0.m": rows_of(whole["optimizer"]["0.m"], rank, world_size)}
    random = {}
    if rank == world_size - 1:
        moments["0.step"] = Piece.whole(whole["optimizer"]["0.step"])
    if rank == 0:
        random["torch"] = Piece.whole(whole["random"]["torch"])
    return {"model": shards, "optimizer": moments, "random": random}


def equal(found, step):
    """Whether the tensors of a checkpoint are those of the step, bit for bit."""
    wanted = whole_tensors(step)
    return found.keys() == wanted.keys() and all(
        found[group].keys() == named.keys()
        and all(torch.equal(found[group][name], tensor) for name, tensor in named.items())
        for group, named in wanted.items()
    )


def together(work, world_size, store=None, patience_seconds=5.0):
    """Call work(rank, coordinator) in a thread for each process; return what each returned or raised."""
    store = store or new_store()
    outcomes = [None] * world_size
    coordinators = [
        Coordinator(store, rank, world_size, patience_seconds=patience_seconds) for rank in range(world_size)
    ]

    def one(rank):
        try:
            outcomes[rank] = work(rank, coordinators[rank])
        except BaseException as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "it waits for ever"
    return outcomes


def save_together(folder, steps, world_size, *, how="fsdp2", background=True, **settings):
    """Save the steps with `world_size` savers; return what each returned or raised."""

    def work(rank, coordinator):
        with Saver(folder, newest=2, background=background, coordinator=coordinator, **settings) as saver:
            for step in steps:
                tensors = tensors_of(step, rank, world_size, how)
                saver.save(step, tensors, {"done": step, "rank": rank}, {"world_size": world_size})

    return together(work, world_size)
