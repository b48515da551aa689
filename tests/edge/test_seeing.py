"""Chats and responses with pictures and recordings: asked with the official client, answered by small models
that see and hear.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from edge_app import catalog_of, edge_app, served
from edge_command import serving
from gguf_models import Shape, write_llama
from http_server import running
from scripted_engine import ScriptedEngine
from seeing_models import MARKS, SOUND, TILE, picture, sound, write_projector

from edge_agent.catalog import Catalog
from edge_agent.engines.files import EngineFiles, of_path, of_release
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.sizes import forecast_bytes
from edge_agent.engines.text_process import EngineProcess
from edge_agent.errors import UnfitRelease, WrongUse
from edge_agent.serve import read_plan
from edge_agent.updates.staging import Stage
from edge_agent.updates.state import Release
from models.digest import Digest
from models.engines.base import Media
from models.manifest import Kind, Manifest
from models.store import BlobStore, copy_durably, describe_file, read_release, write_release
from sync.protocol import Assignment
from sync.update import offer

WIDTH = 64
WORDS = "what was there"


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def message(*seeds: int, words: str = WORDS) -> Any:
    """A user's message: pictures, then words."""
    pictures = [{"type": "image_url", "image_url": {"url": url(picture(seed))}} for seed in seeds]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": words}]}


def recording(tone: float) -> Any:
    """A part of a message."""
    data = base64.b64encode(sound(tone)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("seeing")
    model = write_llama(folder / "model.gguf", Shape(width=WIDTH, inner=128), MARKS)
    return model, write_projector(folder / "mmproj-model.gguf", WIDTH)


@pytest.fixture(scope="module")
def client(files: tuple[Path, Path]) -> Iterator[openai.OpenAI]:
    model, projector = files
    ear = write_projector(model.parent / "mmproj-ear.gguf", WIDTH, "ultravox")
    flags = ("--projector", f"see={projector}", "--projector", f"hear={ear}", "--context", "256")
    with serving(f"see={model}", f"hear={model}", f"blind={model}", flags=flags) as (address, _):
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, *seeds: int, model: str = "see", **options: Any) -> Any:
    facts: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    messages = options.pop("messages", [message(*seeds)])
    return client.chat.completions.create(model=model, messages=messages, **(facts | options))


def told(answer: Any) -> list[str]:
    """The likeliest tokens at each place, which tell more than the text of a random model."""
    return [top.token for token in answer.choices[0].logprobs.content for top in token.top_logprobs]


def test_an_answer_depends_on_the_picture_and_comes_again(client: openai.OpenAI) -> None:
    first, again, other, none = ask(client, 1), ask(client, 1), ask(client, 2), ask(client)
    assert told(first) == told(again)
    assert told(first) != told(other)
    assert told(none) not in (told(first), told(other))
    seen = first.usage.prompt_tokens - none.usage.prompt_tokens
    assert seen > 3 * TILE, "three tiles and what stands around them"
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    assert other.usage.prompt_tokens == first.usage.prompt_tokens


def test_streams_choices_and_responses_see_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, 3, max_tokens=8)
    stream = client.chat.completions.create(
        model="see", messages=[message(3)], max_tokens=8, temperature=0, stream=True
    )
    parts = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
    assert "".join(parts) == whole.choices[0].message.content
    several = ask(client, 3, n=3, max_tokens=8)
    assert {choice.message.content for choice in several.choices} == {whole.choices[0].message.content}
    assert several.usage.prompt_tokens == whole.usage.prompt_tokens
    shown = {"type": "input_image", "image_url": url(picture(3)), "detail": "auto"}
    content: Any = [shown, {"type": "input_text", "text": WORDS}]
    response = client.responses.create(
        model="see", input=[{"role": "user", "content": content}], max_output_tokens=8, temperature=0
    )
    assert response.output_text == whole.choices[0].message.content
    assert response.usage is not None
    assert response.usage.input_tokens == whole.usage.prompt_tokens


def test_a_conversation_goes_on_after_a_picture(client: openai.OpenAI) -> None:
    first = ask(client, 4)
    turns = [message(4), {"role": "assistant", "content": "a cat"}, {"role": "user", "content": " and here"}]
    later = ask(client, messages=turns)
    assert later.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1
    swapped = ask(client, messages=[message(5), *turns[1:]])
    assert swapped.usage.prompt_tokens == later.usage.prompt_tokens
    assert told(swapped) != told(later)


def test_recordings_are_heard(client: openai.OpenAI) -> None:
    def hear(*tones: float, **options: Any) -> Any:
        content = [*map(recording, tones), {"type": "text", "text": WORDS}]
        return ask(client, model="hear", messages=[{"role": "user", "content": content}], **options)

    high, again, low, none = hear(880.0), hear(880.0), hear(220.0), hear()
    assert told(high) == told(again)
    assert told(high) != told(low)
    assert told(none) not in (told(high), told(low))
    assert high.usage.prompt_tokens == low.usage.prompt_tokens == none.usage.prompt_tokens + SOUND
    assert again.usage.prompt_tokens_details.cached_tokens == high.usage.prompt_tokens - 1
    chunks = list(hear(220.0, stream=True))
    streamed = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert streamed == low.choices[0].message.content
    broken = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, model="hear", messages=[{"role": "user", "content": [broken]}])
    assert (refused.value.code, refused.value.param) == ("invalid_audio", "messages")
    with pytest.raises(openai.BadRequestError, match="'hear' takes text and audio alone") as refused:
        ask(client, 1, model="hear")
    assert refused.value.param == "messages[0].content[0]"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, "nothing is fetched"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}, "no base64"),
        ({"type": "image_url", "image_url": {"url": url(b"x"), "detail": "high"}}, "detail"),
        ({"type": "image_url"}, "missing"),
        ({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}, "text and image"),
        ({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "ogg"}}, "wav, mp3"),
        ({"type": "file", "file": {"file_id": "f"}}, "'file' is none of text, image_url, input_audio"),
    ],
)
def test_a_part_that_cannot_be_shown_is_refused_by_name(client: openai.OpenAI, part: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        ask(client, messages=[{"role": "user", "content": [part]}])
    assert refused.value.param == "messages[0].content[0]"


def test_what_is_no_picture_or_too_much_is_refused(client: openai.OpenAI) -> None:
    broken = {"type": "image_url", "image_url": {"url": url(b"\x89PNG broken")}}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages=[{"role": "user", "content": [broken]}])
    assert (refused.value.code, refused.value.param) == ("invalid_image", "messages")
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, *range(16))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="at most 16"):
        ask(client, *range(17))
    with pytest.raises(openai.BadRequestError, match="only text is taken") as refused:
        ask(client, messages=[{**message(1), "role": "system"}])
    with pytest.raises(openai.BadRequestError, match="'blind' takes text alone") as refused:
        ask(client, 1, model="blind")
    assert refused.value.param == "messages[0].content[0]"


async def test_an_engine_is_told_where_pictures_stand() -> None:
    engine = ScriptedEngine()
    seeing = served(engine, takes=("image",))
    async with (
        running(edge_app(catalog_of(seeing))) as address,
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as ai,
    ):
        await ai.chat.completions.create(
            model="smol", messages=[{"role": "system", "content": "brief"}, message(1), message(2, 3)]
        )
    (request,) = engine.requests
    first = "system: brief\nuser: "
    second = f"{first}{WORDS}\nuser: "
    assert request.prompt == f"{second}{WORDS}\nassistant: "
    places = (len(first), len(second), len(second))
    assert request.media == tuple(
        Media("image", picture(seed), place) for seed, place in zip((1, 2, 3), places, strict=True)
    )


def test_a_projector_belongs_to_a_gguf_model(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, projector = files
    (source,) = read_plan([f"see={model}"], [], [f"see={projector}"]).models
    assert source.files is not None
    assert source.files.projector == projector
    assert source.files.bytes_on_disk() == model.stat().st_size + projector.stat().st_size
    with pytest.raises(WrongUse, match="no --model is called 'saw'"):
        read_plan([f"see={model}"], [], [f"saw={projector}"])
    assert of_path(model).projector is None
    paths = {"model.gguf": model, "mmproj-model.gguf": projector}
    release(tmp_path / "see", paths)
    manifest, _ = read_release(tmp_path / "see")
    assert of_release(tmp_path / "see", manifest).projector == tmp_path / "see" / "mmproj-model.gguf"
    with pytest.raises(WrongUse, match="no bare GGUF file"):
        read_plan([f"see={tmp_path}/see"], [], [f"see={projector}"])
    release(tmp_path / "two", {**paths, "mmproj-other.gguf": projector})
    with pytest.raises(UnfitRelease, match="holds 2"):
        read_plan([f"see={tmp_path}/two"], [])


async def test_a_device_of_a_fleet_loads_a_model_with_its_projector(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    paths = dict(zip(("model.gguf", "mmproj-model.gguf"), files, strict=True))
    digest = release(tmp_path / "see", paths)
    manifest, _ = read_release(tmp_path / "see")
    store = BlobStore(tmp_path / "store")
    for file in manifest.files:
        copy_durably(paths[file.path], store.path(file.sha256), file.sha256)
    assignment = Assignment.of(digest, manifest)

    async def start(files: EngineFiles) -> EngineProcess:
        return await EngineProcess.start(files, EngineSettings(threads=1, context_tokens=256))

    def weigh(*_: Any) -> Any:
        raise AssertionError("nothing is replayed here")

    stage = Stage(store, Catalog(), start, forecast_bytes, lambda: 1 << 40, weigh)
    try:
        seeing = await stage.load_base(Release(offer(assignment, 0.0), manifest))
        assert seeing.takes == ("image",)
    finally:
        await stage.close()


def release(folder: Path, files: dict[str, Path]) -> Digest:
    manifest = Manifest(
        kind=Kind.MODEL,
        name=folder.name,
        version="1.0.0",
        format="gguf",
        precision="f32",
        files=tuple(describe_file(path, name) for name, path in files.items()),
        license="Apache-2.0",
    )
    return write_release(folder, manifest, files)
