"""Places for runs in real processes, and the run that nothing ever stopped."""

import signal

import pytest
from real_runs import Place


@pytest.fixture(scope="session", autouse=True)
def _children_hear_ctrl_c():
    """A shell lets what it starts with & ignore Ctrl-C, and children of that ignore it from birth on."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def place(tmp_path):
    """A folder for the runs of one test."""
    found = Place(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="session")
def never_stopped(tmp_path_factory):
    """The place of the run "whole": 12 steps, more than two epochs, dropout, four micro-batches a step.

    Tests must not change it.
    """
    found = Place(tmp_path_factory.mktemp("never_stopped"))
    found.done("whole")
    yield found
    found.close()
