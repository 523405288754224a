r"""Compiled loops without reference counts, for loops that take many arrays and make none.

Numba counts references to every array that a function receives or takes out of a tuple; in small functions
called millions of times this costs more than their work (the merge loop: 0.37 s with, 0.11 s without). A
caller holds its arrays while a loop runs, so the counts are not needed. Such a loop must not create an array.

Numba also writes two more versions of every function, one that Python calls and one that C calls. The C one
is never used, and a part of a loop is never called from Python: without them and without the counts the
loops of merging compile in 3.0 s instead of 6.5 s.
"""

import functools
import hashlib
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

log = logging.getLogger("scratchlm")

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "_nrt": False,  # Numba's run time, which counts references
    "no_cfunc_wrapper": True,
}


def uncounted_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function`; the machine code is cached on disk where possible."""
    plain = inspect.unwrap(function)  # a shape-checking hook may have wrapped it
    try:
        return _stamped(numba.njit(cache=True, **_OPTIONS)(plain))
    except RuntimeError as error:
        log.warning("compiled code cannot be cached, each process compiles anew (seconds): %s", error)
        return numba.njit(**_OPTIONS)(plain)


def uncounted_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` into the loops that call it; Python cannot call it."""
    return numba.njit(forceinline=True, no_cpython_wrapper=True, **_OPTIONS)(inspect.unwrap(function))


def _stamped(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Let the machine code on disk be valid for these sources only.

    Numba looks at the file of the loop itself, but parts of other files are compiled into it: without this a
    newer part would silently not be used (seen with Numba 0.68).
    """
    file = getattr(getattr(loop, "_cache", None), "_cache_file", None)
    if hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, hash_of_sources(Path(__file__).parent))
    return loop


@functools.cache
def hash_of_sources(folder: Path) -> str:
    """sha256, in hex, of all Python files in `folder`; about 1 ms."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        data = path.read_bytes()
        found.update(f"{path.name} {len(data)} ".encode() + data)
    return found.hexdigest()
