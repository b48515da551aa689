"""Whom the conformance suite talks to: anything with OpenAI's API at a base URL.

``pytest tests/conformance --target-url http://HOST/v1 --target-model NAME`` tests a running server, and with
``--target-embedder NAME`` and ``--target-speech NAME`` what it embeds and hears; otherwise the suite starts
each of ``targets.STARTERS`` as a process of its own.
"""

from collections.abc import Iterator

import pytest
from targets import STARTERS, Target


def pytest_addoption(parser: pytest.Parser) -> None:
    """The server that runs already."""
    parser.addoption("--target-url", help="base URL of a running server, ending in /v1")
    parser.addoption("--target-model", help="a model of that server", default="smol")
    parser.addoption("--target-embedder", help="a model of that server that embeds")
    parser.addoption("--target-speech", help="a model of that server that hears English")
    parser.addoption("--real-model", action="store_true", help="no scripted engines where a test has them")
    parser.addoption("--target-key", help="an API key for that server", default="none")


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.model) for name in STARTERS])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The server under test."""
    url = request.config.getoption("--target-url", default=None)
    if url is not None:
        option = request.config.getoption
        yield Target(
            url,
            option("--target-model"),
            option("--target-key"),
            embedder=option("--target-embedder"),
            speech=option("--target-speech"),
        )
        return
    with STARTERS[request.param]() as started:
        yield started


@pytest.fixture
def embedder(target: Target) -> str:
    """Its model that embeds."""
    if target.embedder is None:
        pytest.skip("--target-embedder names no model of that server")
    return target.embedder


@pytest.fixture
def speech(target: Target) -> str:
    """Its model that hears."""
    if target.speech is None:
        pytest.skip("--target-speech names no model of that server")
    return target.speech
