"""``outpost-hub``: the command line. Owns the table of verbs and the exit codes.

A verb lives in its own module of ``cloud_hub.verbs`` and is imported when it runs, so ``--help`` loads
no library. Errors that the packages raise on purpose become one line and an exit code here.
"""

import importlib
from typing import Any

import click

from cloud_hub.errors import HubError, NotFound, Refused, WrongUse
from models.errors import DigestMismatch, InvalidManifest, ModelsError, UnsafeFile
from sync.errors import EnrolmentRefused, InvalidMessage, SyncError, VerificationFailed


class Verbs(click.Group):
    """A group whose commands are ``module:attribute`` and imported on use."""

    def __init__(self, *args: Any, verbs: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = verbs or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which someone needs them."""
        return [*self._verbs, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        place = self._verbs.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{place} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the names with the summaries of this table: help must not import the verbs."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in self._verbs])

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and turn our errors into exit codes."""
        try:
            return super().invoke(ctx)
        except (HubError, SyncError, ModelsError) as error:
            raise failure(error) from error
        except BrokenPipeError:
            raise  # whoever read our output has left; click ends quietly
        except OSError as error:  # a path among the arguments, or in the home, that cannot be used
            named = f"{error.filename}: " if error.filename is not None else ""
            raise click.ClickException(f"{named}{error.strerror or error}") from error


class _WrongUse(click.ClickException):
    exit_code = 2


class _Refused(click.ClickException):
    exit_code = 3


def failure(error: Exception) -> click.ClickException:
    """1 failed, 2 wrong use, 3 refused by policy or verification."""
    if isinstance(error, WrongUse | NotFound):
        return _WrongUse(str(error))
    refusals = (Refused, VerificationFailed, EnrolmentRefused, InvalidMessage)
    if isinstance(error, (*refusals, DigestMismatch, InvalidManifest, UnsafeFile)):
        return _Refused(str(error))
    return click.ClickException(str(error))


SUMMARIES = {
    "keys": "Make the offline keys, on a machine that is not the hub.",
    "init": "Make this hub: online keys, database, first admin token.",
    "serve": "Run the hub: API, console, device listener, broker.",
    "token": "Create, list and revoke API tokens.",
    "device": "Create enrolment tokens; list and revoke devices.",
    "release": "Sign a release offline; publish a signed one.",
    "rollout": "Bring a release to a group, in waves.",
    "upstream": "The OpenAI-compatible servers behind the gateway.",
    "fleet": "What runs where, and why.",
    "audit": "Export, verify and open audit trails.",
}


@click.group(cls=Verbs, verbs={name: f"cloud_hub.verbs.{name}:{name}" for name in SUMMARIES})
@click.version_option(package_name="outpost", prog_name="outpost-hub")
def main() -> None:
    """Outpost's hub: ships signed releases to a fleet, answers its heavy requests, keeps its trail."""


if __name__ == "__main__":
    main()
