"""``outpost-hub rollout``: bring a release to a group, in waves."""

import click

from cloud_hub import registry
from cloud_hub import rollout as decide
from cloud_hub.control import rollout_facts, start_rollout, steer_rollout, unfit_devices
from cloud_hub.home import Home
from cloud_hub.verbs.common import (
    POSITIVE,
    counted,
    emit,
    home_option,
    json_option,
    reading,
    seconds,
    table,
    writing,
)
from sync.protocol import ProbationTerms

DEFAULTS = ProbationTerms()


@click.group()
def rollout() -> None:
    """Bring a release to a group, in waves."""


@rollout.command()
@home_option
@click.option("--release", "reference", required=True, help="NAME@VERSION, KIND/NAME@VERSION or a digest.")
@click.option("--group", required=True)
@click.option("--waves", default="100%", show_default=True, help="For example 5%,25%,100%.")
@click.option(
    "--probation-requests",
    type=click.IntRange(min=1),
    default=DEFAULTS.min_requests,
    show_default=True,
    help="Requests after which a device may commit.",
)
@click.option(
    "--probation-seconds",
    type=POSITIVE,
    default=DEFAULTS.max_seconds,
    show_default=True,
    help="Time after which a device commits with less traffic.",
)
@json_option
def create(
    home: Home,
    reference: str,
    group: str,
    waves: str,
    probation_requests: int,
    probation_seconds: float,
    as_json: bool,
) -> None:
    """Start a rollout. The running hub notices at once."""
    terms = DEFAULTS.model_copy(update={"min_requests": probation_requests, "max_seconds": probation_seconds})
    fractions = decide.parse_waves(waves)
    with writing(home) as connection:
        made = start_rollout(connection, reference, group, fractions, terms, seconds())
        members = sum(row.group == group for row in registry.devices(connection))
        unfit = unfit_devices(connection, made.assignment.release, group)
    facts = {**rollout_facts(made), "unfit": unfit}
    lines = [
        f"Rollout {made.id}: {facts['release']} to group {group} ({counted(members, 'device')}), "
        f"waves {waves}."
    ]
    lines += [f"WARNING: {device} will refuse it: {why}" for device, why in unfit.items()]
    emit(as_json, facts, "\n".join(lines))


def _steer(name: str, summary: str) -> None:
    @home_option
    @click.argument("number", type=int)
    @json_option
    def verb(home: Home, number: int, as_json: bool) -> None:
        with writing(home) as connection:
            changed = steer_rollout(connection, number, name, seconds())
        emit(as_json, rollout_facts(changed), f"Rollout {number} is {changed.state}.")

    rollout.command(name, help=summary)(verb)


_steer("pause", "Open no further wave; devices that were admitted go on.")
_steer("resume", "Go on, and excuse the devices that rolled back so far.")
_steer("abort", "Withdraw the release: its devices go back to what they had.")


@rollout.command()
@home_option
@click.argument("number", type=int, required=False)
@json_option
def status(home: Home, number: int | None, as_json: bool) -> None:
    """Show one rollout, or all."""
    with reading(home) as connection:
        found = registry.rollouts(connection) if number is None else [registry.rollout(connection, number)]
    facts = [rollout_facts(each) for each in found]
    rows = [
        (
            str(each["id"]),
            each["state"],
            each["release"],
            each["group"],
            f"{each['open_waves']}/{len(each['waves'])}",
            str(len(each["members"])),
            each["reason"] or "",
        )
        for each in facts
    ]
    header = ("ID", "STATE", "RELEASE", "GROUP", "WAVE", "DEVICES", "REASON")
    emit(as_json, {"rollouts": facts} if number is None else facts[0], table(header, rows))
