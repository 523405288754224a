"""Reading ahead: the same rows as without, whatever is asked for, and no thread left behind."""

import threading

import pytest
import torch

from scratchlm.data.loader import Batch
from scratchlm.data.prefetch import Prefetcher, Request


class CountingLoader:
    """Rows that say where they come from, and a list of what was read."""

    foreseen = True

    def __init__(self) -> None:
        self.read: list[tuple[Request, str]] = []

    def rows(self, step: int, first: int, count: int) -> Batch:
        self.read.append((Request(step, first, count), threading.current_thread().name))
        if step == 99:
            raise ValueError("shard: damaged")
        ids = torch.tensor([[step, first + offset] for offset in range(count)])
        return Batch(ids, ids + 1)


@pytest.fixture
def prefetcher():
    made = Prefetcher(CountingLoader())
    yield made
    made.close()


def test_what_was_foreseen_is_read_once_and_in_another_thread(prefetcher):
    first, second = Request(0, 0, 2), Request(0, 2, 2)
    prefetcher.rows(first, [second])
    batch = prefetcher.rows(second)
    assert torch.equal(batch.inputs, torch.tensor([[0, 2], [0, 3]]))
    names = {request: name for request, name in prefetcher.loader.read}
    assert len(prefetcher.loader.read) == 2
    assert names[first] == threading.current_thread().name
    assert names[second].startswith("scratchlm-rows")


def test_a_request_that_was_not_foreseen_is_answered_all_the_same(prefetcher):
    prefetcher.rows(Request(0, 0, 2), [Request(1, 0, 2)])
    batch = prefetcher.rows(Request(7, 0, 1))
    assert torch.equal(batch.inputs, torch.tensor([[7, 0]]))


def test_an_error_reaches_whoever_asks(prefetcher):
    prefetcher.rows(Request(0, 0, 1), [Request(99, 0, 1)])
    with pytest.raises(ValueError, match="shard: damaged"):
        prefetcher.rows(Request(99, 0, 1))


def test_closing_ends_the_thread():
    prefetcher = Prefetcher(CountingLoader())
    prefetcher.rows(Request(0, 0, 1), [Request(1, 0, 1)])
    prefetcher.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scratchlm-rows")]


def test_what_cannot_be_known_before_its_step_is_not_read_ahead():
    loader = CountingLoader()
    loader.foreseen = False
    prefetcher = Prefetcher(loader)
    prefetcher.rows(Request(0, 0, 2), [Request(1, 0, 2)])
    prefetcher.rows(Request(1, 0, 2))
    prefetcher.close()
    assert [request.step for request, _ in loader.read] == [0, 1]
    assert {thread for _, thread in loader.read} == {threading.current_thread().name}
