"""Places for runs in real processes, and the run that nothing ever stopped."""

import pytest
from real_runs import Place


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
