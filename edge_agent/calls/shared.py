"""What every call on this device goes through, of text or of an encoder.

Refuses: the order in which it does (``edge_agent.calls.text``, ``edge_agent.calls.encoders``).
"""

from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.admission import Admission
from edge_agent.calls.questions import ANONYMOUS, Question, Rules, intent_facts
from edge_agent.catalog import Catalog, Outcome, Served
from edge_agent.errors import NoRoom
from edge_agent.journal import Entry, Journal
from edge_agent.metrics import Metrics
from edge_agent.policy import Decision
from models.errors import EngineError, InvalidRequest


@dataclass(frozen=True, slots=True)
class Shared:
    """One of each for all calls. ``monotonic``: a clock in seconds for durations."""

    catalog: Catalog
    journal: Journal | None
    admission: Admission
    rules: Rules
    metrics: Metrics
    monotonic: Callable[[], float]

    def entry(self, question: Question, decision: Decision) -> Entry:
        """The two records of a call. Its intent is being written."""
        entry = Entry(self.journal, question.id, str(decision.data_class), question.subject or ANONYMOUS)
        entry.begin(intent_facts(question, decision, self.catalog), question.body)
        return entry

    def failed(self, error: EngineError, served: Served, seconds: float) -> None:
        """Tell that an answer failed after ``seconds``, unless ``error`` says nothing about the model.

        What the caller asked for, or the memory that others have, must not roll a release back.
        """
        if not isinstance(error, InvalidRequest | NoRoom):
            self.observe(Outcome(served, False, seconds, 0))

    def observe(self, outcome: Outcome) -> None:
        """Tell everybody who watches how an engine did."""
        self.metrics.outcome(outcome)
        self.catalog.record(outcome)
