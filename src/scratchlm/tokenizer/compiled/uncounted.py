r"""Compiled loops without reference counts, for loops that take many arrays and make none.

Numba counts references to every array that a function receives or takes out of a tuple; in small functions
called millions of times this costs more than their work (the merge loop: 0.37 s with, 0.11 s without). A
caller holds its arrays while a loop runs, so the counts are not needed. Such a loop must not create an array.

Numba also writes two more versions of every function, one that Python calls and one that C calls. The C one
is never used, and a part of a loop is never called from Python: without them and without the counts the
loops of merging compile in 3.0 s instead of 6.5 s.
"""

import inspect
import logging
from collections.abc import Callable
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
        return numba.njit(cache=True, **_OPTIONS)(plain)
    except RuntimeError as error:
        log.warning("compiled code cannot be cached, each process compiles anew (seconds): %s", error)
        return numba.njit(**_OPTIONS)(plain)


def uncounted_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` into the loops that call it; Python cannot call it."""
    return numba.njit(forceinline=True, no_cpython_wrapper=True, **_OPTIONS)(inspect.unwrap(function))
