"""Errors of ``cloud_hub``.

::

    HubError
    ├── WrongUse                 an argument that makes no sense; the message names it (exit code 2)
    ├── NotFound                 no such device, release, rollout, token or upstream
    ├── Refused                  policy or verification says no (exit code 3)
    │   ├── NotAllowed           the token's role does not permit it
    │   └── InvalidToken         an API, session or enrolment token that is unknown, used or expired
    ├── NoUpstream               nothing that serves the requested model can be reached now
    └── StorageFailed            the database did not do what was asked
"""


class HubError(Exception):
    """Base of every error that this package raises on purpose."""


class WrongUse(HubError):
    """An argument makes no sense. The message names it."""


class NotFound(HubError):
    """Something was named that does not exist."""


class Refused(HubError):
    """Policy or verification says no. Nothing was changed."""


class NotAllowed(Refused):
    """The role of a token does not permit what was asked."""


class InvalidToken(Refused):
    """A token is unknown, used, revoked or expired. Which of these is not told to the bearer."""


class NoUpstream(HubError):
    """No upstream for a model can be reached now."""


class StorageFailed(HubError):
    """The database did not do what was asked; nothing of the transaction remains."""
