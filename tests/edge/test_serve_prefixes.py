"""``serve --prefixes``: what many prompts begin with is there when the command is run again."""

from dataclasses import replace
from pathlib import Path

import httpx
from click.testing import CliRunner
from edge_command import serving
from gguf_models import Shape, write_llama

from edge_agent.cli import main

SHARED = "the cat sat on the mat . " * 8
SHAPE = Shape(layers=1, width=32, inner=32, heads=2, kv_heads=1)


def cached(url: str, ending: str) -> int:
    """How many tokens of a prompt were known."""
    asked = {"model": "m", "prompt": SHARED + ending, "max_tokens": 1}
    answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=60)
    answer.raise_for_status()
    found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def test_prefixes_outlive_the_command_for_the_weights_that_made_them(tmp_path: Path) -> None:
    model, kept = tmp_path / "m.gguf", tmp_path / "prefixes"
    write_llama(model, SHAPE)
    flags = ("--prefixes", str(kept))
    with serving(f"m={model}", flags=flags) as (url, _):
        assert cached(url, "hot") == 0
        shared = cached(url, "cold")
        assert shared > 40
    with serving(f"m={model}", flags=flags) as (url, _):
        assert cached(url, "oil") == shared
    assert [file.stat().st_mode & 0o777 for file in kept.iterdir()] == [0o600]
    write_llama(model, replace(SHAPE, seed=1))  # the same name, size and shape
    with serving(f"m={model}", flags=flags) as (url, _):
        assert cached(url, "hot") == 0


def test_a_member_of_a_fleet_has_a_place_of_its_own_for_them(tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["serve", "--home", str(tmp_path), "--prefixes", "here"])
    assert refused.exit_code == 2
    assert f"a member of a fleet has {tmp_path / 'prefixes'}" in refused.stderr
