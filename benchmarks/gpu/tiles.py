"""Tiles that are tried in attention's kernels, and the best of those that were measured."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

Row = dict[str, Any]

Candidate = tuple[int, int, int, int] | tuple[int, int, int, int, str]
"""Queries, keys, warps, stages; how blocks are loaded, where it is not as in the table."""

CANDIDATES: dict[tuple[str, int], Sequence[Candidate]] = {
    ("forward", 64): (
        (128, 128, 8, 2),
        (128, 64, 4, 2),
        (128, 64, 8, 3),
        (128, 64, 4, 3, "pointers"),
        (64, 64, 4, 3),
        (128, 128, 8, 3),
        (64, 128, 4, 2),
        *((128, 64, 4, stages) for stages in (3, 4)),
        *((64, 64, 4, stages) for stages in (2, 4)),
        *((128, 32, 4, stages) for stages in (3, 4)),
        (128, 64, 8, 2),
        (128, 128, 4, 2),
        (256, 64, 8, 2),
        (128, 128, 8, 3, "pointers"),
    ),
    ("backward_keys", 64): (
        *((64, 128, 8, stages) for stages in (2, 3)),
        *((64, 64, 4, stages) for stages in (2, 3)),
        (128, 128, 8, 1),
        (64, 128, 8, 3, "pointers"),
        *((32, 128, 4, stages) for stages in (2, 3, 4)),
        (128, 128, 8, 2),
        (128, 64, 4, 2),
        (32, 64, 4, 3),
    ),
    ("backward_queries", 64): (
        *((128, 64, 8, stages) for stages in (2, 3)),
        *((128, 64, 4, stages) for stages in (2, 3)),
        (128, 128, 8, 2),
        (128, 64, 8, 3, "pointers"),
        *((64, 64, 4, stages) for stages in (2, 3)),
        *((128, 32, 4, stages) for stages in (2, 3, 4)),
        (64, 128, 4, 2),
    ),
    ("backward_one_pass", 64): (
        *((64, 128, 8, stages) for stages in (1, 2, 3)),
        *((64, 64, 4, stages) for stages in (1, 2)),
        *((32, 128, 4, stages) for stages in (2, 3)),
        (128, 128, 8, 1),
    ),
    ("forward", 128): (
        *((128, 64, 8, stages) for stages in (2, 3)),
        *((128, 128, 8, stages) for stages in (2, 3)),
        *((64, 64, 4, stages) for stages in (2, 3)),
        *((128, 64, 4, stages) for stages in (2, 3)),
        (128, 32, 8, 3),
        (64, 128, 4, 2),
        (128, 64, 8, 3, "pointers"),
    ),
    ("backward_keys", 128): (
        *((64, 128, 8, stages) for stages in (1, 2)),
        *((64, 64, 8, stages) for stages in (2, 3)),
        *((32, 128, 8, stages) for stages in (2, 3)),
        (64, 64, 4, 2),
        (32, 64, 4, 2),
    ),
    ("backward_queries", 128): (
        *((128, 64, 8, stages) for stages in (1, 2)),
        *((64, 64, 4, stages) for stages in (2, 3)),
        *((64, 64, 8, stages) for stages in (2, 3)),
        *((128, 32, 8, stages) for stages in (2, 3)),
    ),
    ("backward_one_pass", 128): ((64, 64, 8, 2), (64, 64, 8, 1), (32, 128, 8, 2), (64, 128, 8, 1)),
}
"""Kernel and head width -> what is tried: near the table, and larger or more blocks at once.

Most important kernels first: d 64 is trained, and the one-pass backward pass is one kernel of several.
"""


def in_turn(
    candidates: Mapping[tuple[str, int], Sequence[Candidate]] = CANDIDATES,
) -> Iterator[tuple[str, int, Candidate | None]]:
    """Yield the table's tile of each kernel as None, then each kernel's first candidate, each one's second.

    A sweep that is cut has then tried something in every kernel.

    Example: {("a", 64): (x, y), ("b", 64): (z,)} -> a None, b None, a x, b z, a y.
    """
    for name, width in candidates:
        yield name, width, None
    for turn in zip_longest(*candidates.values()):
        for (name, width), candidate in zip(candidates, turn, strict=True):
            if candidate is not None:
                yield name, width, candidate


def best_constants(rows: Sequence[Row]) -> dict[str, Row]:
    """Kernel -> the fastest row with its gain over the constants as they are."""
    found: dict[str, Row] = {}
    for row in rows:
        if "constants_of" in row and not row["constants"] and "ms" in row:
            name = row["constants_of"]
            group = [other for other in rows if other.get("constants_of") == name and "ms" in other]
            best = min(group, key=lambda other: other["ms"])
            found[name] = best | {"gain": row["ms"] / best["ms"]}
    return found


def best_tiles(rows: Sequence[Row]) -> dict[str, Row]:
    """Kernel and width -> the fastest row (short and long texts count alike) with its gain over the table."""
    found: dict[str, Row] = {}
    for (name, width), _ in CANDIDATES.items():
        group = [
            row for row in rows if row.get("kernel") == name and row.get("width") == width and "ms" in row
        ]
        table = next((row for row in group if row["table"]), None)
        if table is not None:
            best = min(group, key=lambda row: row["ms"])
            found[f"{name}, d {width}"] = best | {
                "gain": table["ms"] / best["ms"],
                "table_tile": table["tile"],
            }
    return found
