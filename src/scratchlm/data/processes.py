"""Preparing with several processes of this machine: portions go out to them, encoded ids come back.

    this process     scans for portions -+-> process 0   reads, encodes -+-> ids in order -> ShardWriter
                                         +-> process 1   reads, encodes -+

For each process there is a thread here that hands it a portion and waits for the ids, so the order of the
results, how many may wait, and what happens to errors are those of threads. A process that dies, killed for
its memory perhaps, is replaced, and its portion is done again; one that loses its parent ends. One worker
needs no second process: it is this one.

Processes are started afresh (spawn): a copy of a process that has threads (numba, torch) may hang.
"""

import functools
import multiprocessing
import queue
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection

from scratchlm.data.prepare import Encoded, Job, Work, do_job, encode_in_threads, jobs_left
from scratchlm.runtime import log
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.batches import map_in_order

MAX_LOST = 3
"""Processes that may die over one portion: then it is the portion's fault, such as its size."""


def encode_in_processes(work: Work) -> Iterator[Encoded]:
    """Encode what is left of a corpus with `work.workers` processes.

    Raises:
        ValueError: The text is damaged, or a process died MAX_LOST times at the same place.
    """
    if work.workers == 1:
        yield from encode_in_threads(work)
        return
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    workers = [_Worker(work.tokenizer) for _ in range(work.workers)]
    for worker in workers:
        idle.put(worker)
    try:
        ask = functools.partial(_ask_idle, idle=idle)
        yield from map_in_order(ask, jobs_left(work), num_threads=work.workers, num_waiting=work.queue_size)
    finally:
        for worker in workers:
            worker.end()


def _ask_idle(job: Job, idle: "queue.SimpleQueue[_Worker]") -> Encoded:
    worker = idle.get()  # never waits: there are as many threads as workers
    try:
        return worker.ask(job)
    finally:
        idle.put(worker)


class _Worker:
    """One process that encodes what it is asked to."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start()

    def ask(self, job: Job) -> Encoded:
        """Return the portion's ids; another process does it if this one dies."""
        for _ in range(MAX_LOST):
            try:
                self._connection.send(job)
                answer = self._connection.recv()
            except (EOFError, OSError):
                self.end()
                code = self._process.exitcode
                if code is not None and code > 0:  # it raised what it should not; a signal gives less than 0
                    raise RuntimeError("a process failed while it encoded; it says above why.") from None
                log.warning("a process died (exit code %s) while it encoded; another does its part.", code)
                self._start()
                continue
            if isinstance(answer, Exception):
                raise answer
            return answer
        raise ValueError(
            f"{MAX_LOST} processes died while they encoded the same part of the text; where memory is short, "
            "choose fewer workers."
        )

    def end(self) -> None:
        """Let the process end; it waits for work, or is dead."""
        self._connection.close()
        self._process.join()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, other = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(other, self._tokenizer), daemon=True)
        self._process.start()
        other.close()


def _serve(connection: Connection, tokenizer: Tokenizer) -> None:
    """What a process does: one portion after the other, until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the connection
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):  # the parent has ended, however it did
            return
        try:
            answer: Encoded | Exception = do_job(job, tokenizer)
        except (ValueError, OSError) as error:
            answer = error
        connection.send(answer)
