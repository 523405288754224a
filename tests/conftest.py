"""Fixtures for all tests: the shared real data, seeds, one thread."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratchlm import registry

# processes that meet look each other up by name: where no name server answers, not for five seconds
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first: at the end one process would work at them and the other at nothing."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(scope="session", autouse=True)
def _children_hear_ctrl_c() -> None:
    """A shell lets what it starts with & ignore Ctrl-C, and children of that ignore it from birth on."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real text that may stand beside the checkout; tests skip when it is missing."""
    candidates = [os.environ.get("SCRATCHLM_SHARED_DATA", ""), Path(__file__).parents[2] / "shared" / "data"]
    for candidate in candidates:
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("real data is not here; set SCRATCHLM_SHARED_DATA to its folder")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    """The same random numbers and one torch thread for every test: their order changes no bit."""
    import torch

    from scratchlm import runtime

    runtime.set_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _families_as_shipped() -> Iterator[None]:
    """What a test registers from outside the package (a plug-in, a page's example) is gone after it."""
    before = {role: set(family._parts) for role, family in registry.families().items()}
    yield
    for role, family in registry.families().items():
        for name, part in list(family._parts.items()):
            if not part.__module__.startswith("scratchlm.") and name not in before.get(
                role, set(family._parts)
            ):
                del family._parts[name]
