"""API keys of this device: who may call it from other machines, and how often.

A file keeps of each key its name, its SHA-256 and its limits, never the key itself: whoever reads the file
cannot call. Keys are 256 random bits, so that a plain hash is enough. A file that is changed while the server
runs takes effect with the next call; one that cannot be read then leaves the keys as they were. Owns the file
and the counting of calls; refuses HTTP (``edge_agent.rest.guard``).
"""

import hashlib
import logging
import math
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_agent.errors import Overloaded, WrongUse
from models.store import write_durably

PREFIX = "sk-outpost-"
"""What every key begins with, so that scanners for leaked secrets can know it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MINUTE = 60.0

log = logging.getLogger(__name__)


class ApiKey(BaseModel):
    """What is kept of a key. Limits that are None do not exist.

    ``requests_per_minute``: calls that may begin in a minute; ``at_once``: calls that may run together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME.pattern + "$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: int | None = Field(default=None, ge=1)
    at_once: int | None = Field(default=None, ge=1)


class _KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys in a file; none when there is no file. Raises ``WrongUse`` for one that is no key file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read: {error.strerror}") from error
    try:
        keys = _KeyFile.model_validate_json(data).keys
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise WrongUse(f"{path}: no file of API keys: {where or 'JSON'}: {first['msg']}") from error
    if len({key.name for key in keys}) != len(keys):
        raise WrongUse(f"{path}: two keys have the same name")
    return keys


def create_key(path: Path, name: str, requests_per_minute: int | None, at_once: int | None) -> str:
    """A new key, which nobody can ask for again. Raises ``WrongUse``, also for a name that is taken."""
    if not _NAME.fullmatch(name):
        raise WrongUse(f"--name {name!r}: letters, digits, dots, dashes and underscores")
    known = read_keys(path)
    if any(key.name == name for key in known):
        raise WrongUse(f"--name {name}: there is a key of that name; revoke it, or choose another name")
    secret = PREFIX + secrets.token_urlsafe(32)
    made = ApiKey(name=name, sha256=_digest(secret), requests_per_minute=requests_per_minute, at_once=at_once)
    _write(path, (*known, made))
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Forget a key. Raises ``WrongUse`` when there is none of that name."""
    known = read_keys(path)
    kept = tuple(key for key in known if key.name != name)
    if len(kept) == len(known):
        raise WrongUse(f"{name}: there is no key of that name in {path}")
    _write(path, kept)


@dataclass(slots=True)
class Bucket:
    """How often one key has called (token bucket). ``now`` in seconds of a monotonic clock.

    Law: in any ``t`` seconds at most ``limit * (1 + t / 60)`` calls are let in.
    """

    limit: int
    left: float
    at: float

    def settle(self, now: float) -> None:
        """Bring what is left up to date."""
        self.left = min(self.limit, self.left + (now - self.at) * self.limit / _MINUTE)
        self.at = now

    def take(self, now: float) -> float:
        """Let a call in and return 0, or return the seconds after which there is room."""
        self.settle(now)
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) * _MINUTE / self.limit


@dataclass(slots=True)
class Caller:
    """One key, and what it uses now."""

    key: ApiKey
    bucket: Bucket | None = None
    running: int = field(default=0)

    def hold_to(self, key: ApiKey, now: float) -> None:
        """Take the limits of ``key`` from now on; what is used stays used."""
        limit, before = key.requests_per_minute, self.bucket
        self.key, self.bucket = key, None
        if limit is not None:
            self.bucket = Bucket(limit, limit, now)
            if before is not None:
                before.settle(now)
                self.bucket.left = min(limit, before.left)

    def enter(self, now: float) -> None:
        """Count a call in, to be counted out by ``leave``. Raises ``Overloaded``."""
        if self.key.at_once is not None and self.running >= self.key.at_once:
            raise Overloaded(1, f"the key {self.key.name!r} has {self.key.at_once} calls running")
        wait = self.bucket.take(now) if self.bucket is not None else 0.0
        if wait:
            limit = self.key.requests_per_minute
            raise Overloaded(math.ceil(wait), f"the key {self.key.name!r} may call {limit} times a minute")
        self.running += 1

    def leave(self) -> None:
        """The call has ended."""
        self.running -= 1

    def headers(self) -> dict[str, str]:
        """OpenAI's names for how much is left."""
        if self.bucket is None:
            return {}
        reset = (self.bucket.limit - self.bucket.left) * _MINUTE / self.bucket.limit
        return {
            "x-ratelimit-limit-requests": str(self.bucket.limit),
            "x-ratelimit-remaining-requests": str(int(self.bucket.left)),
            "x-ratelimit-reset-requests": f"{reset:.0f}s",
        }


class Keys:
    """The keys of a file, looked up by what callers present. ``monotonic`` is a clock in seconds.

    Raises ``WrongUse`` for a file that is none, or that holds no key.
    """

    def __init__(self, path: Path, monotonic: Callable[[], float]) -> None:
        self._path, self._monotonic = path, monotonic
        self._callers: dict[str, Caller] = {}
        self._seen = self._state()
        self._take(read_keys(path))
        if not self._callers:
            raise WrongUse(f"{path}: holds no API key; make one with: outpost-edge key create")

    def find(self, secret: str) -> Caller | None:
        """Who presents ``secret``; None when nobody may."""
        self._refresh()
        # Looked up by its hash: how long that takes says nothing about the keys.
        return self._callers.get(_digest(secret))

    def enter(self, caller: Caller) -> None:
        """See ``Caller.enter``."""
        caller.enter(self._monotonic())

    def _refresh(self) -> None:
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._take(read_keys(self._path))
        except WrongUse as error:
            log.error("the API keys stay as they were: %s", error)

    def _take(self, keys: tuple[ApiKey, ...]) -> None:
        # Who is known under a name keeps what it uses now: an edited key gets no fresh limits.
        known = {caller.key.name: caller for caller in self._callers.values()}
        self._callers = {key.sha256: known.get(key.name) or Caller(key) for key in keys}
        for key in keys:
            self._callers[key.sha256].hold_to(key, self._monotonic())

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _write(path: Path, keys: tuple[ApiKey, ...]) -> None:
    write_durably(path, _KeyFile(keys=keys).model_dump_json(indent=1).encode() + b"\n", mode=0o600)
