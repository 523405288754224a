"""Messages: bytes and seconds of rings, by examples that can be checked by hand."""

import pytest

from scratchlm.machines import find_machine
from scratchlm.train.messages import (
    BASE_DELAY,
    HOP_NETWORK,
    HOP_NVLINK,
    Group,
    Message,
    bandwidth,
    delay,
    exposed_seconds,
    sent_bytes,
)

H100 = find_machine("h100")
MACHINE, CLUSTER = Group(8, 8), Group(32, 8)


def ring_all_reduce(size, num_bytes):
    """What each of `size` processes sends, counted on a ring step by step."""
    chunk, sent = num_bytes / size, [0.0] * size
    for _ in range(size - 1):  # sums go round, then the finished sums
        for rank in range(size):
            sent[rank] += 2 * chunk
    return sent


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_an_all_reduce_sends_what_a_ring_does_step_by_step(size):
    assert ring_all_reduce(size, 120.0) == pytest.approx([sent_bytes("all-reduce", 120.0, size)] * size)


@pytest.mark.parametrize("kind", ["all-gather", "reduce-scatter", "broadcast", "reduce"])
def test_half_of_an_all_reduce_sends_half(kind):
    assert 2 * sent_bytes(kind, 100.0, 4) == sent_bytes("all-reduce", 100.0, 4) == 150.0


def test_a_ring_is_as_fast_as_its_slowest_link():
    assert bandwidth(H100, MACHINE) == pytest.approx(0.8 * 450e9)
    assert bandwidth(H100, CLUSTER) == pytest.approx(0.8 * 8 * 50e9)  # eight cards of a machine together
    assert bandwidth(H100, Group(4, 1)) == pytest.approx(0.8 * 50e9)  # one GPU of each machine: one card
    slow = find_machine("h100", between_gb_per_second=1.0)
    assert bandwidth(slow, CLUSTER) == pytest.approx(0.8 * 8e9)
    assert bandwidth(slow, MACHINE) == bandwidth(H100, MACHINE)


def test_delays_count_the_steps_of_the_ring():
    assert delay("all-gather", H100, MACHINE) == pytest.approx(BASE_DELAY + 7 * HOP_NVLINK)
    across = BASE_DELAY + 28 * HOP_NVLINK + 3 * HOP_NETWORK  # 31 steps, 3 of them between machines
    assert delay("reduce-scatter", H100, CLUSTER) == pytest.approx(across)
    assert delay("broadcast", H100, CLUSTER) == pytest.approx(BASE_DELAY + HOP_NETWORK)


def test_an_all_reduce_of_many_gpus_takes_the_tree():
    ring = BASE_DELAY + 2 * (896 * HOP_NVLINK + 127 * HOP_NETWORK)
    assert delay("all-reduce", H100, Group(1024, 8)) < 0.05 * ring


def test_nothing_travels_alone_and_nothing_costs_nothing():
    assert Message("all-reduce", 1e9, 10, Group(1, 1), 1e8).seconds(H100) == 0
    assert Message("all-reduce", 0.0, 10, MACHINE, 0.0).seconds(H100) == 0


def test_what_travels_hides_behind_what_computes_but_for_the_last_call():
    message = Message("all-reduce", 1e9, 10, MACHINE, 1e8)
    everything, last = message.seconds(H100), message.bare_seconds(H100)
    assert 0 < last < everything / 5
    assert exposed_seconds((message,), H100, 1.0) == last
    assert exposed_seconds((message,), H100, 0.0) == pytest.approx(everything)
    half = everything / 2
    assert exposed_seconds((message,), H100, half) == pytest.approx(everything - half)
