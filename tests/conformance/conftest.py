"""Whom the conformance suite talks to: anything with OpenAI's API at a base URL.

``pytest tests/conformance --target-url http://HOST/v1 --target-model NAME`` tests a running server;
otherwise the suite starts each of ``targets.STARTERS`` as a process of its own.
"""

from collections.abc import Iterator

import pytest
from targets import STARTERS, Target


def pytest_addoption(parser: pytest.Parser) -> None:
    """The server that runs already."""
    parser.addoption("--target-url", help="base URL of a running server, ending in /v1")
    parser.addoption("--target-model", help="a model of that server", default="smol")
    parser.addoption("--real-model", action="store_true", help="no scripted engines where a test has them")
    parser.addoption("--target-key", help="an API key for that server", default="none")


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.model) for name in STARTERS])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The server under test."""
    url = request.config.getoption("--target-url", default=None)
    if url is not None:
        option = request.config.getoption
        yield Target(url, option("--target-model"), option("--target-key"))
        return
    with STARTERS[request.param]() as started:
        yield started
