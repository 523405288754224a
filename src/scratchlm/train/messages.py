r"""Bytes that GPUs exchange come in; what each of them sends and how long that takes go out.

    all-reduce                    2 (n - 1) / n * bytes      each GPU sends, in a ring of n
    all-gather, reduce-scatter      (n - 1) / n * bytes
    broadcasts or reduces of shares (n - 1) / n * bytes      the n owners one after the other

    ring through 2 machines of 4:    0 - 1 - 2 - 3        4 - 5 - 6 - 7
                                     |           +========+           |      as many rings as network cards:
                                     +================================+      each uses another one

    seconds   = sent bytes / bandwidth + calls * delay
    bandwidth = 0.8 * min(inside, l * between)       l GPUs of the group in a machine share its l cards

In a ring every GPU passes parts on to the next one, so each link carries the same bytes however many GPUs
there are; what grows with their number is the delay of the many small steps. A group inside a machine never
meets the network, and a group with one GPU of each machine has one card's bandwidth only.

Source: Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms"; steps, delays and trees as in the
model by which NCCL chooses (src/graph/tuning.cc, commit 01afd20), there in microseconds.
"""

import math
from typing import Literal, NamedTuple

from scratchlm.machines import Machine

BANDWIDTH_SHARE = 0.8
"""Of the data sheet's figure: NCCL counts 20 of 25 GB/s for each NVLink of an A100, 20.6 of an H100's
(src/graph/topo.h, commit 069a3d4). The same share of a network card is an assumption."""
BASE_DELAY = 8.4e-6
"""Seconds to begin a call (as the four below from NCCL: ring, protocol "Simple")."""
HOP_NVLINK, HOP_PCIE, HOP_NETWORK = 3.4e-6, 5.7e-6, 9.6e-6
"""From one GPU of a ring to the next."""
TREE_BASE, TREE_HOP_INSIDE, TREE_HOP_NETWORK = 4.4e-6, 1.2e-6, 8.5e-6
"""The same in a tree, protocol "LL128", which an all-reduce takes when that is faster."""

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "broadcast", "reduce"]
"""What a call does; broadcast and reduce mean one call after the other until each owner has had its turn."""


class Group(NamedTuple):
    """GPUs that call together."""

    size: int
    """How many."""
    local: int
    """Of them in one machine."""

    @property
    def machines(self) -> int:
        """Over how many machines they are spread."""
        return -(-self.size // self.local)


class Message(NamedTuple):
    """Calls of one kind in one phase of a step."""

    kind: Kind
    num_bytes: float
    """Of the whole tensors, all calls together."""
    calls: int
    group: Group
    bare_bytes: float
    """Of the first or last call, which no computation can hide."""

    @property
    def sent_bytes(self) -> float:
        """What each GPU sends."""
        return sent_bytes(self.kind, self.num_bytes, self.group.size)

    def seconds(self, machine: Machine) -> float:
        """All calls, one after the other."""
        if self.group.size == 1 or not self.num_bytes:
            return 0.0
        return self.sent_bytes / bandwidth(machine, self.group) + self.calls * delay(
            self.kind, machine, self.group
        )

    def bare_seconds(self, machine: Machine) -> float:
        """The call that nothing hides."""
        return self._replace(num_bytes=self.bare_bytes, calls=1).seconds(machine)


def sent_bytes(kind: Kind, num_bytes: float, size: int) -> float:
    """Return what each of `size` GPUs sends. Example: all-reduce of 100 bytes by 4 -> 150."""
    return (2 if kind == "all-reduce" else 1) * (size - 1) / size * num_bytes


def bandwidth(machine: Machine, group: Group) -> float:
    """Return bytes per second on each link of the ring."""
    fastest = machine.inside_gb_per_second
    if group.machines > 1:
        network = group.local * machine.between_gb_per_second
        fastest = network if group.local == 1 else min(fastest, network)
    return BANDWIDTH_SHARE * 1e9 * fastest


def delay(kind: Kind, machine: Machine, group: Group) -> float:
    """Return the seconds of a call that sends nothing.

    Example: an all-gather by 8 GPUs over NVLink has 7 steps, 8.4 + 7 * 3.4 = 32 microseconds.
    """
    inside = HOP_NVLINK if machine.nvlink else HOP_PCIE
    between = group.machines - 1
    if kind in ("broadcast", "reduce"):
        return BASE_DELAY + (HOP_NETWORK if between else inside)
    ring = (group.size - 1 - between) * inside + between * HOP_NETWORK
    if kind != "all-reduce":
        return BASE_DELAY + ring
    levels = math.ceil(math.log2(group.machines)) if between else 0
    tree = 2 * ((group.local - 1) * TREE_HOP_INSIDE + levels * TREE_HOP_NETWORK)
    return min(BASE_DELAY + 2 * ring, TREE_BASE + tree)


def total_seconds(messages: tuple[Message, ...], machine: Machine) -> float:
    """Return the seconds of all messages, one after the other."""
    return math.fsum(message.seconds(machine) for message in messages)


def exposed_seconds(messages: tuple[Message, ...], machine: Machine, computing: float) -> float:
    """Return the seconds of messages that a computation of `computing` seconds does not hide.

    The first (or last) call of each is bare; the others go on beside the computation and cost it nothing.
    """
    bare = math.fsum(message.bare_seconds(machine) for message in messages)
    return bare + max(0.0, total_seconds(messages, machine) - bare - computing)
