"""The edge's API over scripted engines, as tests need it."""

import itertools
import time
from typing import Any

from fastapi import FastAPI
from scripted_engine import ScriptedEngine

from edge_agent.admission import Limits
from edge_agent.calls.questions import Rules
from edge_agent.catalog import Catalog, Served
from edge_agent.egress import Egress
from edge_agent.journal import Journal
from edge_agent.keys import Keys
from edge_agent.rest.api import create_app
from models.digest import Digest
from models.prompts import ChatTemplate

TEMPLATE = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ")


def served(engine: ScriptedEngine, model_id: str = "smol", **changes: Any) -> Served:
    """A model of the catalog that answers with ``engine``."""
    facts: dict[str, Any] = {
        "adapter_key": None,
        "template": TEMPLATE,
        "context_tokens": engine.context_tokens,
        "release": Digest.of(model_id.encode()),
    }
    return Served(model_id=model_id, engine=engine, **(facts | changes))


def edge_app(
    catalog: Catalog,
    *,
    journal: Journal | None = None,
    egress: Egress | None = None,
    limits: Limits = Limits(),
    rules: Rules = Rules(),
    keys: Keys | None = None,
) -> FastAPI:
    """The app with real clocks and numbered requests."""
    numbers = itertools.count(1)
    return create_app(
        catalog,
        journal=journal,
        egress=egress,
        now=time.time,
        monotonic=time.monotonic,
        new_id=lambda: f"r{next(numbers)}",
        limits=limits,
        rules=rules,
        keys=keys,
    )


def catalog_of(*models: Served) -> Catalog:
    """A catalog with ``models`` published."""
    catalog = Catalog()
    for model in models:
        catalog.publish(model)
    return catalog
