"""A probe as a call to an encoder, and its answer as ``models.probes`` judges it. Pure."""

from collections.abc import Sequence

from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall, floats
from models.engines.readings import Recording
from models.manifest import Probe, Task
from models.probes import label_answer, relevance_answer, score_answer, text_answer, vector_answer


def call_of(probe: Probe, data: bytes | None) -> EncoderCall:
    """The probe as the API would ask it; ``data`` of its picture or recording, None for a text."""
    if data is None:
        return EncoderCall((probe.text or "",), query=probe.query)
    if probe.audio is not None:
        return EncoderCall(recording=Recording(data))
    return EncoderCall(images=(data,))


def answer_of(answer: EncoderAnswer, task: Task, labels: Sequence[str]) -> str:
    """The answer of a model that is made for ``task`` to one input."""
    if answer.transcript is not None:
        return text_answer(answer.transcript.text)
    if answer.pages:
        return text_answer(answer.pages[0].text)
    if answer.inspections:
        return score_answer(answer.inspections[0].score, answer.inspections[0].is_defect)
    numbers = floats(answer.rows[0])
    if task == "rerank":
        return relevance_answer(numbers[0])
    return vector_answer(numbers) if task == "embed" else label_answer(labels, numbers)
