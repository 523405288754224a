"""Tests of Triton kernels: interpreted ones run only in their own process, which `make test` starts."""

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this process cannot run: Triton reads TRITON_INTERPRET when a kernel is defined."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for item in items:
        if item.get_closest_marker("interpret") and not interpreted:
            item.add_marker(pytest.mark.skip(reason="needs a process of its own with TRITON_INTERPRET=1"))
        if item.get_closest_marker("compile") and interpreted:
            item.add_marker(pytest.mark.skip(reason="interpreted kernels cannot be compiled"))
