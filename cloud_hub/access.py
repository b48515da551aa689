"""Who may do what: API tokens with roles, console sessions, and one-time enrolment secrets.

Secrets are shown once and stored as SHA-256 only (they are 256 random bits, so a slow hash would buy
nothing). Random bytes and the clock are passed in.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, insert, select, update

from cloud_hub.database import ENROLMENTS, SESSIONS, TOKENS
from cloud_hub.errors import InvalidToken, NotFound, WrongUse

TOKEN_PREFIX = "oph_"  # noqa: S105 (public: leaked tokens can be searched for)
SESSION_SECONDS = 12 * 3600.0

RandomBytes = Callable[[int], bytes]


class Role(StrEnum):
    """What the bearer of a token is."""

    ADMIN = "admin"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    VIEWER = "viewer"
    APP = "app"


class Permission(StrEnum):
    """What can be asked of the hub."""

    VIEW = "view the fleet"
    OPERATE = "change rollouts"
    AUDIT = "export the audit trail"
    INFER = "use the gateway"
    ADMINISTER = "manage tokens and devices"


PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.ADMIN: frozenset(Permission),
    Role.OPERATOR: frozenset({Permission.VIEW, Permission.OPERATE, Permission.INFER}),
    Role.AUDITOR: frozenset({Permission.VIEW, Permission.AUDIT}),
    Role.VIEWER: frozenset({Permission.VIEW}),
    Role.APP: frozenset({Permission.INFER}),
}


@dataclass(frozen=True, slots=True)
class Bearer:
    """Someone who proved to hold a valid token."""

    token_id: str
    name: str
    role: Role

    def may(self, permission: Permission) -> bool:
        """Whether the role permits it."""
        return permission in PERMISSIONS[self.role]


def create_token(
    connection: Connection,
    role: Role,
    name: str,
    now: float,
    random: RandomBytes,
    expires_at: float | None = None,
) -> str:
    """Store a new API token and return it; it cannot be shown again."""
    secret = _encode(random(32))
    token_id = random(6).hex()
    connection.execute(
        insert(TOKENS).values(
            id=token_id,
            secret_sha256=_hash(secret),
            name=name,
            role=role,
            created_at=now,
            expires_at=expires_at,
        )
    )
    return f"{TOKEN_PREFIX}{token_id}_{secret}"


def revoke_token(connection: Connection, token_id: str, now: float) -> None:
    """Refuse a token, and the sessions begun with it, from now on. Raises ``NotFound``."""
    if connection.execute(update(TOKENS).where(TOKENS.c.id == token_id).values(revoked_at=now)).rowcount == 0:
        raise NotFound(f"no token {token_id!r}")
    connection.execute(delete(SESSIONS).where(SESSIONS.c.token_id == token_id))


def authenticate(connection: Connection, token: str, now: float) -> Bearer:
    """The bearer of an API token. Raises ``InvalidToken``."""
    token_id, _, secret = token.removeprefix(TOKEN_PREFIX).partition("_")
    bearer = _bearer(connection, token_id, now, _hash(secret))
    if not token.startswith(TOKEN_PREFIX) or bearer is None:
        raise InvalidToken("the token is unknown, revoked or expired")
    return bearer


def begin_session(connection: Connection, bearer: Bearer, now: float, random: RandomBytes) -> str:
    """A console session's secret, for a cookie. Sessions that have expired are forgotten here."""
    secret = _encode(random(32))
    connection.execute(delete(SESSIONS).where(SESSIONS.c.expires_at <= now))
    connection.execute(
        insert(SESSIONS).values(
            secret_sha256=_hash(secret), token_id=bearer.token_id, expires_at=now + SESSION_SECONDS
        )
    )
    return secret


def resume_session(connection: Connection, secret: str, now: float) -> Bearer:
    """The bearer of a session. Raises ``InvalidToken``."""
    query = select(SESSIONS.c.token_id).where(
        SESSIONS.c.secret_sha256 == _hash(secret), SESSIONS.c.expires_at > now
    )
    token_id = connection.execute(query).scalar()
    bearer = _bearer(connection, token_id, now) if token_id else None
    if bearer is None:
        raise InvalidToken("the session has ended")
    return bearer


def end_session(connection: Connection, secret: str) -> None:
    """Forget a session."""
    connection.execute(delete(SESSIONS).where(SESSIONS.c.secret_sha256 == _hash(secret)))


def create_enrolment(
    connection: Connection, group: str, now: float, lifetime: float, random: RandomBytes
) -> str:
    """Store a one-time enrolment secret for a device of ``group`` and return it.

    Raises ``WrongUse`` for a group that cannot be named in a rollout.
    """
    if not group or group != group.strip() or not group.isprintable():
        raise WrongUse(f"--group: a name without blanks around it, not {group!r}")
    secret = _encode(random(32))
    connection.execute(
        insert(ENROLMENTS).values(
            secret_sha256=_hash(secret), group_name=group, created_at=now, expires_at=now + lifetime
        )
    )
    return secret


def use_enrolment(connection: Connection, secret: str, device: str, now: float) -> tuple[str, bool]:
    """Spend an enrolment secret for ``device``: its group, and whether this is the first use.

    The device that spent it may ask again, for a reply may get lost; the caller must then demand the
    same key. Raises ``InvalidToken``. The update is the check: of two devices one gets in.
    """
    mine = (ENROLMENTS.c.secret_sha256 == _hash(secret), ENROLMENTS.c.expires_at > now)
    spend = update(ENROLMENTS).where(*mine, ENROLMENTS.c.used_at.is_(None)).values(used_at=now, device=device)
    group = connection.execute(spend.returning(ENROLMENTS.c.group_name)).scalar()
    if group is not None:
        return str(group), True
    again = select(ENROLMENTS.c.group_name).where(*mine, ENROLMENTS.c.device == device)
    group = connection.execute(again).scalar()
    if group is None:
        raise InvalidToken("the enrolment token is unknown, used or expired")
    return str(group), False


def _bearer(
    connection: Connection, token_id: str, now: float, secret_sha256: str | None = None
) -> Bearer | None:
    query = select(TOKENS.c.id, TOKENS.c.name, TOKENS.c.role, TOKENS.c.expires_at).where(
        TOKENS.c.id == token_id, TOKENS.c.revoked_at.is_(None)
    )
    if secret_sha256 is not None:
        query = query.where(TOKENS.c.secret_sha256 == secret_sha256)
    row = connection.execute(query).mappings().first()
    if row is None or (row["expires_at"] is not None and row["expires_at"] <= now):
        return None
    return Bearer(row["id"], row["name"], Role(row["role"]))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
