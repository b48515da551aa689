"""What verbs share: the ``--home`` and ``--json`` options, the clock, the database, printing."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy import Connection

from cloud_hub.database import Database
from cloud_hub.home import Home

F = TypeVar("F", bound=Callable[..., Any])


def home_option(function: F) -> F:
    """``--home DIR`` as a ``Home``."""
    return click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(".outpost/hub"),
        envvar="OUTPOST_HUB_HOME",
        show_default=True,
        show_envvar=True,
        callback=lambda _context, _parameter, value: Home(value.absolute()),
        help="The hub's folder.",
    )(function)


def json_option(function: F) -> F:
    """``--json``: one JSON object on stdout and nothing else."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def emit(as_json: bool, value: dict[str, Any], text: str) -> None:
    """Print the result, as JSON or for people."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


class _Positive(click.FloatRange):
    """A number above 0. NaN compares with nothing, so a range alone would take it."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no length of time.", param, ctx)
        return number


POSITIVE = _Positive()


def counted(number: int, noun: str) -> str:
    """``1 device``, ``2 devices``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def now() -> datetime:
    """The clock of every verb."""
    return datetime.now(UTC)


def seconds() -> float:
    """The same clock, in seconds since the epoch."""
    return time.time()


@contextlib.contextmanager
def reading(home: Home) -> Iterator[Connection]:
    """A consistent view of the home's database."""
    with _database(home) as opened, opened.read() as connection:
        yield connection


@contextlib.contextmanager
def writing(home: Home) -> Iterator[Connection]:
    """One transaction on the home's database: all of it is committed, or none."""
    with _database(home) as opened, opened.write() as connection:
        yield connection


@contextlib.contextmanager
def _database(home: Home) -> Iterator[Database]:
    """Open, and migrated."""
    opened = Database.open(home.database_url(home.settings()))
    try:
        opened.migrate()
        yield opened
    finally:
        opened.close()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, as wide as they need to be."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    )
    return "\n".join(lines)


def age(then: float | None, present: float) -> str:
    """How long ago, in one unit."""
    if then is None:
        return "never"
    passed = max(0.0, present - then)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed >= length:
            return f"{passed / length:.0f} {unit} ago"
    return f"{passed:.0f} s ago"
