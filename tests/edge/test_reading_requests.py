"""Transcripts and rankings as they are written: clocks, forms, order; requests that are refused by name."""

import itertools
import re
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.engines.encoder_calls import EncoderAnswer
from edge_agent.rest.multipart import Part
from edge_agent.rest.reader_requests import TranscriptionRequest, clock, transcript_answer
from edge_agent.rest.rerank import RerankRequest, ranked_json, relevances
from models.engines.readings import Segment, Transcript
from models.openai.errors import ApiError

SPOKEN = Transcript("en", 3601.25, (Segment(0, 1.5, " One --> two."), Segment(3599.9996, 3601.25, " End.")))


def asked(**fields: str) -> TranscriptionRequest:
    named = {"model": "speech", "file": "sound", **fields}
    return TranscriptionRequest.of_form([Part(name, value.encode()) for name, value in named.items()])


def test_each_form_of_a_transcript() -> None:
    answer = EncoderAnswer(transcript=SPOKEN)
    assert transcript_answer(asked(), answer) == {
        "text": "One --> two. End.",
        "usage": {"type": "duration", "seconds": 3602},
    }
    assert transcript_answer(asked(response_format="text"), answer) == "One --> two. End.\n"
    assert transcript_answer(asked(response_format="srt"), answer) == (
        "1\n00:00:00,000 --> 00:00:01,500\nOne -> two.\n\n2\n01:00:00,000 --> 01:00:01,250\nEnd.\n\n"
    )
    assert transcript_answer(asked(response_format="vtt"), answer) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nOne -> two.\n\n01:00:00.000 --> 01:00:01.250\nEnd.\n\n"
    )


@given(st.text(st.sampled_from("->a \n\r\u2028"), max_size=12))
def test_no_text_that_is_heard_reads_as_a_cue_of_its_own(said: str) -> None:
    answer = EncoderAnswer(transcript=Transcript("en", 1.0, (Segment(0, 1, said), Segment(1, 2, "End."))))
    for form in ("srt", "vtt"):
        written = transcript_answer(asked(response_format=form), answer)
        assert isinstance(written, str)
        assert written.count("-->") == 2
        assert written.count("\n\n") == (2 if form == "srt" else 3)
        assert len(written.splitlines()) == 8


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"stream": "true"}, "stream"),
        ({"temperature": "2"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"language": "English"}, "language"),
        ({"response_format": "docx"}, "response_format"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        ({"include[]": "logprobs"}, "include[]"),
    ],
)
def test_what_is_not_honoured_is_named(fields: dict[str, str], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        asked(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


@given(st.floats(0, 1e6))
def test_a_clock_tells_the_time(seconds: float) -> None:
    hours, minutes, rest = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d{3})", clock(seconds, ".")).groups()
    assert int(minutes) < 60 and float(rest) < 60
    assert abs(3600 * int(hours) + 60 * int(minutes) + float(rest) - seconds) <= 0.001


@given(st.lists(st.floats(0, 1, width=32), min_size=1), st.none() | st.integers(1, 20))
def test_the_most_relevant_come_first_and_keep_their_index(scores: list[float], top: int | None) -> None:
    texts = [f"text {index}" for index in range(len(scores))]
    request = RerankRequest(model="m", query="q", documents=texts, top_n=top)
    answer = EncoderAnswer(tuple(array("f", [score]).tobytes() for score in scores))
    results = ranked_json(request, "rerank", answer)["results"]
    assert len(results) == min(len(scores), top or len(scores))
    found = [one["relevance_score"] for one in results]
    assert found == sorted(scores, reverse=True)[: len(results)]
    for one in results:
        assert scores[one["index"]] == one["relevance_score"]
        assert one["document"] == {"text": texts[one["index"]]}
    for first, second in itertools.pairwise(results):
        assert first["relevance_score"] > second["relevance_score"] or first["index"] < second["index"]


def test_vectors_made_apart_are_compared_by_their_angle() -> None:
    rows = [(1, 0), (2, 0), (0, 3), (-1, 0), (0, 0)]
    answer = EncoderAnswer(tuple(array("f", row).tobytes() for row in rows))
    assert relevances("embed", answer) == [1.0, 0.0, -1.0, 0.0]
