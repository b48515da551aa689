"""Errors of ``edge_agent``.

::

    EdgeError
    ├── WrongUse                 a command line that cannot be carried out; names the flag
    │   ├── NotLoopback              an address that other machines could reach, without TLS and API keys
    │   ├── NotEnrolled              a home that belongs to no device yet
    │   └── AlreadyEnrolled          a home that belongs to a device already
    ├── CannotListen             the port cannot be had
    ├── UnknownModel             no model of that name is published on this device
    ├── WrongTask                a model was asked for what it is not made for
    ├── Overloaded               more requests than it will queue or a key may make; says when to come back
    ├── PolicyViolation          content was about to leave under a decision that does not cover it
    ├── ReleaseRefused           a verdict on a release: it is not tried again by itself
    │   ├── UnfitRelease             it does not fit this device, or its base
    │   └── ProbeFailed              it does not answer as its maker saw it answer
    └── HubError                 a request that was to run at the hub did not
        ├── HubUnreachable           nothing was answered; the device may answer in its stead
        ├── HubRefused               the hub answered with an error of its own
        │   └── HubLacksModel            nothing there serves the model; the device may answer in its stead
        └── HubBroke                 the answer stopped half-way, or was no answer

    models.errors.EngineError
    ├── EngineCrashed            the engine's process ended under its requests; it is being restarted
    └── NoRoom                   there is no memory for a model now; the message has the numbers
"""

from models.errors import EngineError


class EdgeError(Exception):
    """Base of every error that this package raises on purpose."""


class WrongUse(EdgeError):
    """A command line cannot be carried out; the message names the flag."""


class NotLoopback(WrongUse):
    """An address that other machines could reach, without what that needs; or none of this machine."""


class CannotListen(EdgeError):
    """The port cannot be had."""


class UnknownModel(EdgeError):
    """No model of that name is published on this device."""


class WrongTask(EdgeError):
    """A model was asked for what it is not made for; the message names the route that is."""


class Overloaded(EdgeError):
    """More requests than the device will queue, or than a key may make. ``retry_after``: whole seconds."""

    def __init__(self, retry_after: int, reason: str = "the device is busy") -> None:
        super().__init__(f"{reason}; try again in {retry_after} s")
        self.retry_after = retry_after


class PolicyViolation(EdgeError):
    """Content was about to leave the device under a decision that does not cover it."""


class NotEnrolled(WrongUse):
    """A home holds no device identity yet; the message says how to get one."""


class AlreadyEnrolled(WrongUse):
    """A home belongs to a device already."""


class ReleaseRefused(EdgeError):
    """A verdict on a release: it is not tried again by itself."""


class UnfitRelease(ReleaseRefused):
    """A release does not fit this device, or the base that it would ride on."""


class ProbeFailed(ReleaseRefused):
    """A release does not answer a probe as its maker saw it answer."""


class HubError(EdgeError):
    """A request that was to run at the hub did not."""


class HubUnreachable(HubError):
    """The hub cannot be reached now; nothing of an answer has arrived."""


class HubRefused(HubError):
    """The hub answered with an error. ``status`` is HTTP's, ``error`` OpenAI's error object."""

    def __init__(self, status: int, error: dict[str, object]) -> None:
        super().__init__(str(error.get("message", f"the hub answered {status}")))
        self.status = status
        self.error = error


class HubLacksModel(HubRefused):
    """Nothing behind the hub serves the model that was asked for."""


class HubBroke(HubError):
    """The hub's answer stopped half-way, or was not what it should be."""


class EngineCrashed(EngineError):
    """The engine's process ended while it owed an answer. It is restarted; asking again may succeed."""


class NoRoom(EngineError):
    """There is no memory for a model now; the message has the numbers. Says nothing about the model."""
