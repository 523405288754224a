"""The base run that post-training goes on from."""

import pytest
import torch
from small_bases import make_base


@pytest.fixture(scope="session")
def base_run(tmp_path_factory):
    """A run folder with random weights; tests must not change it."""
    torch.set_num_threads(1)
    return make_base(tmp_path_factory.mktemp("bases") / "base")
