"""Preparing on a Ray cluster: portions go out as Ray tasks, encoded ids come back.

    ray start --head                                        on one machine
    ray start --address HEAD:6379                           on the others
    scratchlm data prepare TEXT ... --engine ray --address HEAD:6379

Without an address Ray is started on this machine, for this call, with as many processors as there are
workers. Ray hands out a task again when its worker or its machine died; the ids are put in order here, so the
shards are the same bytes however many workers there are. All machines must have this package, and see the
text under the same path where the corpus says where to read (plain text files); other text travels with its
portion.

Source: Moritz et al. 2018, "Ray: A Distributed Framework for Emerging AI Applications",
https://arxiv.org/abs/1712.05889, section 4.2 (tasks are computed again from their lineage).
"""

import functools
import os
import socket
from collections.abc import Iterator
from typing import Any

from scratchlm.data.prepare import Encoded, Job, Work, do_job, jobs_left
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.batches import map_in_order

MAX_LOST = 3
"""Workers that may die over one portion: then it is the portion's fault, such as its size."""
CONNECT_SECONDS = 10.0
"""How long the machine of a cluster may take to answer: within a data centre it takes milliseconds."""


def encode_on_ray(work: Work, *, address: str | None = None) -> Iterator[Encoded]:
    """Encode what is left of a corpus in Ray tasks, `work.workers` at a time.

    Args:
        work: What to encode.
        address: Of a cluster, as `ray.init` takes it ("auto", "10.0.0.1:6379"); None starts one here.

    Raises:
        ValueError: The text is damaged, workers died MAX_LOST + 1 times over the same portion, or nobody
            answers at the address.
        ImportError: Ray is not installed.
    """
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        _start(ray, work.workers, address)
    try:
        tokenizer = ray.put(work.tokenizer)  # in the store once, so a portion carries nothing but its place
        task = ray.remote(num_cpus=1, max_retries=MAX_LOST)(_encode)  # lost workers; an error is no reason
        ask = functools.partial(_ask, ray=ray, task=task, tokenizer=tokenizer)
        waiting = 2 * work.workers  # one being encoded and one ready for each
        yield from map_in_order(
            ask, jobs_left(work), num_threads=waiting, num_waiting=max(work.queue_size, waiting)
        )
    finally:
        if ours:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ImportError("--engine ray needs the 'ray' extra: pip install 'scratchlm[ray]'.") from None
    return ray


def _start(ray: Any, workers: int, address: str | None) -> None:
    """Join a cluster, or start one that is as large as this work."""
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for a report over the network
        settings |= {"num_cpus": workers, "num_gpus": 0, "include_dashboard": False}
        address = "local"
    host, colon, port = address.rpartition(":")
    try:
        if colon and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, **settings)
    except OSError as error:
        reason = str(error).partition("\n")[0][:160]
        raise ValueError(
            f"--address {address}: no Ray answers there ({reason}); start it with ray start --head, or leave "
            "the address out."
        ) from None


def _ask(job: Job, *, ray: Any, task: Any, tokenizer: Any) -> Encoded:
    try:
        return ray.get(task.remote(job, [tokenizer]))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.WorkerCrashedError:
        raise ValueError(
            f"{MAX_LOST + 1} workers died while they encoded the same part of the text; where memory is "
            "short, choose fewer workers."
        ) from None


def _encode(job: Job, tokenizer: list[Any]) -> Encoded:
    """What a worker does; a reference in a list stays one, and the worker looks it up when it is new."""
    return do_job(job, _fetched(tokenizer[0]))


@functools.lru_cache(maxsize=1)
def _fetched(tokenizer: Any) -> Tokenizer:
    import ray

    return ray.get(tokenizer)
