r"""Shuffled orders that are computed, not stored: (key, index) comes in, a number goes out.

    mix(key, a, b, ...)              64 random-looking bits, a pure function of its arguments
    permute(index, size, key)        where `index` lands in a shuffle of 0 .. size - 1

`permute` is a Feistel network: the index is cut into two halves and each round adds a hash of one half to the
other, modulo that half's size. Every round can be undone, so the whole is a permutation of 0 .. a * b - 1
with a * b the first such product >= size; an index that lands at `size` or above is sent through again until
it lands below ("cycle walking"), which leaves a permutation of 0 .. size - 1. Any position of any epoch costs
microseconds and no memory, so a run resumes anywhere, on any number of machines, in the same order.

Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 3 (cycle walking) and 5
(generalised Feistel). The hash is SplitMix64's finaliser: Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators". Not for secrets.
"""

import math

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
"""SplitMix64's increment: 2^64 divided by the golden ratio, made odd."""
ROUNDS = 6
"""Luby and Rackoff prove four enough for a good hash; two more cost 1 microsecond."""


def mix(*numbers: int) -> int:
    """Hash whole numbers to 64 bits; the order matters."""
    state = 0
    for number in numbers:
        state = (state + GOLDEN + (number & MASK)) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def uniform(size: int, *numbers: int) -> int:
    """A number in 0 .. size - 1, a pure function of `numbers`; the bias is below size / 2^64."""
    return (mix(*numbers) * size) >> 64


def permute(index: int, size: int, *key: int) -> int:
    """Where `index` lands in the shuffle of 0 .. size - 1 that `key` names.

    Args:
        index: 0 .. size - 1.
        size: How many items are shuffled, at least 1.
        key: Another key, another shuffle.

    Raises:
        ValueError: The index is not below `size`.
    """
    if not 0 <= index < size:
        raise ValueError(f"index={index} is not one of 0 to {size - 1}.")
    left_size = (
        math.isqrt(size - 1) + 1
    )  # the smallest a, b with a * b >= size: at most one walk in expectation
    right_size = -(-size // left_size)
    round_keys = [mix(*key, number) for number in range(ROUNDS)]
    while True:
        left, right = index // right_size, index % right_size
        for number in range(0, ROUNDS, 2):
            left = (left + mix(round_keys[number], right)) % left_size
            right = (right + mix(round_keys[number + 1], left)) % right_size
        index = left * right_size + right
        if index < size:
            return index
