"""One server for all tests that do not disturb it."""

import pytest
from live_server import live, served


@pytest.fixture(scope="session")
def server():
    """A server with two models; tests leave nothing under way."""
    with live(lambda: [served(slots=4), served("plain", slots=2, special=False)]) as made:
        yield made
