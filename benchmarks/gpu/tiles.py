"""Tiles that are tried in attention's kernels, and the best of those that were measured."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

Candidate = tuple[int, int, int, int] | tuple[int, int, int, int, str]
"""Queries, keys, warps, stages; how blocks are loaded, where it is not as in the table."""

CANDIDATES: dict[tuple[str, int], Sequence[Candidate]] = {
    ("forward", 64): (
        *((128, 64, 4, stages) for stages in (2, 3, 4)),
        *((128, 128, 8, stages) for stages in (2, 3)),
        *((128, 64, 8, stages) for stages in (2, 3)),
        *((64, 64, 4, stages) for stages in (2, 3, 4)),
        *((128, 32, 4, stages) for stages in (3, 4)),
        (64, 128, 4, 2),
        (128, 128, 4, 2),
        (256, 64, 8, 2),
        (128, 64, 4, 3, "pointers"),
        (128, 128, 8, 3, "pointers"),
    ),
    ("backward_keys", 64): (
        *((64, 128, 8, stages) for stages in (2, 3)),
        *((64, 64, 4, stages) for stages in (2, 3)),
        *((32, 128, 4, stages) for stages in (2, 3, 4)),
        *((128, 128, 8, stages) for stages in (1, 2)),
        (128, 64, 4, 2),
        (32, 64, 4, 3),
        (64, 128, 8, 3, "pointers"),
    ),
    ("backward_queries", 64): (
        *((128, 64, 8, stages) for stages in (2, 3)),
        *((128, 64, 4, stages) for stages in (2, 3)),
        *((64, 64, 4, stages) for stages in (2, 3)),
        *((128, 32, 4, stages) for stages in (2, 3, 4)),
        (128, 128, 8, 2),
        (64, 128, 4, 2),
        (128, 64, 8, 3, "pointers"),
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
    ("backward_one_pass", 64): (
        *((64, 128, 8, stages) for stages in (1, 2, 3)),
        *((64, 64, 4, stages) for stages in (1, 2)),
        *((32, 128, 4, stages) for stages in (2, 3)),
        (128, 128, 8, 1),
    ),
    ("backward_one_pass", 128): ((64, 64, 8, 2), (64, 64, 8, 1), (32, 128, 8, 2), (64, 128, 8, 1)),
}
"""Kernel and head width -> what is tried: near the table, and larger or more blocks at once."""


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
