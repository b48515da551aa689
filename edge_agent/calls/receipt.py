"""What stands on every answer: which release spoke, under which rules, from where, on which record."""

import base64
from dataclasses import dataclass, replace
from typing import Any, Literal

from edge_agent import policy
from edge_agent.catalog import Served
from edge_agent.policy import Decision
from models import canonical

RECEIPT_HEADER = "x-outpost-receipt"
SERVED_BY_HEADER = "x-outpost-served-by"


@dataclass(frozen=True, slots=True)
class Receipt:
    """``intent`` and ``result`` are record numbers in the device's trail, None without a trail.

    ``release`` and ``adapter`` are digests of manifests, None for a bare file or for what the hub chose;
    then ``upstream`` holds the receipt that came with the answer, if one did. ``provisional``: the hub
    should have answered and could not.
    """

    request_id: str
    model: str
    served_by: Literal["edge", "hub"]
    data_class: str
    release: str | None = None
    adapter: str | None = None
    prompt: str | None = None
    provisional: bool = False
    intent: int | None = None
    result: int | None = None
    upstream: dict[str, Any] | None = None

    @classmethod
    def local(cls, request_id: str, served: Served, decision: Decision, intent: int | None) -> "Receipt":
        """For an answer of this device."""
        return cls(
            request_id=request_id,
            model=served.model_id,
            served_by="edge",
            data_class=str(decision.data_class),
            release=served.release,
            adapter=served.adapter_release,
            prompt=served.prompt_version,
            provisional=decision.local_fallback,
            intent=intent,
        )

    @classmethod
    def hub(cls, request_id: str, model: str, decision: Decision, intent: int | None) -> "Receipt":
        """For an answer of the hub."""
        return cls(request_id, model, "hub", str(decision.data_class), intent=intent)

    def closed(self, result: int | None, upstream: dict[str, Any] | None = None) -> "Receipt":
        """The final receipt, once the result is on record."""
        return replace(self, result=result, upstream=upstream)

    def to_json(self) -> dict[str, Any]:
        """The body's field ``outpost``."""
        audit = None if self.intent is None else {"intent": self.intent, "result": self.result}
        known = {
            "request_id": self.request_id,
            "model": self.model,
            "release": self.release,
            "adapter": self.adapter,
            "prompt": self.prompt,
            "policy": policy.VERSION,
            "data_class": self.data_class,
            "served_by": self.served_by,
            "provisional": self.provisional,
            "audit": audit,
        }
        return known if self.upstream is None else known | {"upstream": self.upstream}

    def headers(self) -> dict[str, str]:
        """The receipt's headers; the value is base64url of canonical JSON, without padding.

        What came from upstream is another's word and another's size: it stays in the body.
        """
        coded = (
            base64.urlsafe_b64encode(canonical.encode(replace(self, upstream=None).to_json()))
            .rstrip(b"=")
            .decode("ascii")
        )
        return {RECEIPT_HEADER: coded, SERVED_BY_HEADER: self.served_by}
