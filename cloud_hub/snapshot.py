"""Reads everything that a picture of the fleet is made of, in one transaction."""

from sqlalchemy import Connection

from cloud_hub import registry
from cloud_hub.figures import figure_rows
from cloud_hub.ingest import audit_rows, evidence_rows
from cloud_hub.view import Rows


def read_rows(connection: Connection) -> Rows:
    """The rows behind ``view.picture``."""
    return Rows(
        devices=registry.devices(connection),
        releases=registry.releases(connection),
        rollouts=registry.rollouts(connection),
        audits=audit_rows(connection),
        evidence=evidence_rows(connection),
        figures=figure_rows(connection),
    )
