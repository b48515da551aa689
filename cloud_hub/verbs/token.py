"""``outpost-hub token``: API tokens and their roles."""

import secrets

import click
from sqlalchemy import select

from cloud_hub import access
from cloud_hub.database import TOKENS
from cloud_hub.home import Home
from cloud_hub.verbs.common import (
    POSITIVE,
    age,
    emit,
    home_option,
    json_option,
    reading,
    seconds,
    table,
    writing,
)


@click.group()
def token() -> None:
    """Create, list and revoke API tokens."""


@token.command()
@home_option
@click.option("--role", type=click.Choice([role.value for role in access.Role]), required=True)
@click.option("--name", default="", help="Who or what it is for.")
@click.option("--days", type=POSITIVE, help="Life in days.  [no end]")
@json_option
def create(home: Home, role: str, name: str, days: float | None, as_json: bool) -> None:
    """Create a token. It is shown once."""
    expires = None if days is None else seconds() + days * 86_400
    with writing(home) as connection:
        made = access.create_token(
            connection, access.Role(role), name or role, seconds(), secrets.token_bytes, expires
        )
    emit(as_json, {"token": made, "role": role}, made)


@token.command("list")
@home_option
@json_option
def list_tokens(home: Home, as_json: bool) -> None:
    """List tokens, never their secrets."""
    with reading(home) as connection:
        query = select(TOKENS.c.id, TOKENS.c.name, TOKENS.c.role, TOKENS.c.created_at, TOKENS.c.revoked_at)
        rows = [dict(row) for row in connection.execute(query.order_by(TOKENS.c.created_at)).mappings()]
    lines = [
        (
            row["id"],
            row["role"],
            row["name"],
            age(row["created_at"], seconds()),
            "revoked" * bool(row["revoked_at"]),
        )
        for row in rows
    ]
    emit(as_json, {"tokens": rows}, table(("ID", "ROLE", "NAME", "CREATED", ""), lines))


@token.command()
@home_option
@click.argument("token_id")
@json_option
def revoke(home: Home, token_id: str, as_json: bool) -> None:
    """Refuse a token from now on."""
    with writing(home) as connection:
        access.revoke_token(connection, token_id, seconds())
    emit(as_json, {"revoked": token_id}, f"Token {token_id} is revoked.")
