r"""Text and a trie of special tokens -> where they stand: the leftmost first, at one place the longest.

    names  <|end|>  <|ent|>        trie  < -> | -> e -> n -> d -> | -> >   name 0
                                                           \-> t -> | -> >   name 1
    the edges of all nodes stand in one array, level after level: edge k leads to node k + 1

Nearly all text holds no special token. Sixty-four bytes at a time are compared with the few pairs of bytes
with which one can begin ("<|"); only where a pair stands is the trie walked. Where there are too many pairs,
the first byte alone, or a table of first bytes, takes their place.
"""

# ruff: noqa: ANN001, ANN201 - Numba infers the types; the docstring names them

import numpy as np

from scratchlm.tokenizer.compiled.uncounted import uncounted_loop
from scratchlm.tokenizer.compiled.vector import (
    NONE,
    ONE,
    bits_between,
    load,
    lowest_bit,
    mask_equal,
    store,
)


@uncounted_loop
def find_names(text, first, end, pairs, any_second, begins, first_edges, edge_bytes, names, places, which):
    """Find the names in text[first:end], none over another.

    One function, because a call with arrays in a loop would count references to each of them.

    Args:
        text: uint8, readable to PADDING bytes behind `end`.
        first: Where to begin.
        end: Where the text ends; a name that reaches over it is none.
        pairs: int64, first and second byte of each pair with which a name may begin; empty for `begins`.
        any_second: uint64 for each pair: ALL when the second byte does not matter, else NONE.
        begins: int32[256], the node to which a first byte leads, 0 where no name begins with it.
        first_edges: int32, the first edge of each node, one more at the end.
        edge_bytes: uint8, the byte of each edge.
        names: int32, the number of the name that ends at each node, or -1.
        places: int32, receives where each name stands.
        which: int32, receives the number of each name.

    Returns:
        How many were found; len(places) when there may be more.
    """
    count = np.int64(0)
    free = np.int64(first)  # where the last name ended
    for i in range(first, end, 64):
        mask = NONE  # bit k: a name may begin at text[i + k]
        for pair in range(len(any_second)):
            same = mask_equal(text, i + 1, load(pairs, 2 * pair + 1)) | load(any_second, pair)
            mask |= mask_equal(text, i, load(pairs, 2 * pair)) & same
        if len(any_second) == 0:
            for k in range(64):
                mask |= np.uint64(load(begins, np.int64(load(text, i + k))) != 0) << np.uint64(k)
        if mask == NONE:
            continue
        mask &= bits_between(free - i, end - i)
        while mask != NONE:
            place = i + lowest_bit(mask)
            mask &= mask - ONE
            if place < free:
                continue
            name, j = np.int64(-1), place
            node = np.int64(load(begins, np.int64(load(text, place))))
            while node > 0:
                j += 1
                if load(names, node) >= 0:
                    name, free = np.int64(load(names, node)), j
                edge, last_edge = np.int64(load(first_edges, node)), np.int64(load(first_edges, node + 1))
                node = np.int64(0)
                while j < end and edge < last_edge and node == 0:
                    if load(edge_bytes, edge) == load(text, j):
                        node = edge + 1
                    edge += 1
            if name >= 0:
                if count == len(places):
                    return count
                store(places, count, np.int32(place))
                store(which, count, np.int32(name))
                count += 1
    return count
