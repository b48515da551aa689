"""A part of llama.cpp's own server tests against an agent; ``scripts/conformance`` runs all of them."""

import pytest
from llama_server_report import run

FILES = ("test_compat_oai_responses.py", "test_embedding.py", "test_rerank.py", "test_security.py")


@pytest.mark.model
@pytest.mark.slow
def test_others_tests_pass_or_are_skipped_for_a_reason() -> None:
    results = run([f"unit/{name}" for name in FILES])
    assert {name: outcome for name, (outcome, _) in results.items() if outcome == "failed"} == {}
    assert sum(outcome == "passed" for outcome, _ in results.values()) > 25
