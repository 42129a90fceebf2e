"""Makes asynchronous tests run on uvloop, the event loop of the load balancer."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import pytest
import uvloop

MEASURED_BY_OTHERS = frozenset(
    {"test_default_ring.py", "test_growth.py", "test_model.py", "test_published_table.py"}
)
"""Tests that compute for long, on code that shorter tests cover too: they run without measuring coverage."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in MEASURED_BY_OTHERS:
            item.add_marker(pytest.mark.no_cover)
