"""Links in mail. Their address is signed when the mail is sent, so that none can be made from the database alone."""

from __future__ import annotations

import datetime
from typing import TypeVar

from itsdangerous import BadSignature
from sqlalchemy.orm import Session

from everyformer.site.models import SignInLink, Subscription
from everyformer.site.web import Site

CONFIRM_DAYS = 7

Row = TypeVar("Row", SignInLink, Subscription)


def sign_in(site: Site, link: SignInLink) -> str:
    """The address that signs somebody in."""
    return f"{site.settings.public_url}/sign-in/{_sign(site, link)}"


def unsubscribe(site: Site, subscription: Subscription) -> str:
    """The address that ends a subscription; it does not expire, as mail is kept for years."""
    return f"{site.settings.public_url}/unsubscribe/{_sign(site, subscription)}"


def confirm(site: Site, subscription: Subscription, period: str) -> str:
    """The address that begins a subscription with this period."""
    until = site.now() + datetime.timedelta(days=CONFIRM_DAYS)
    token = site.signer("confirm").dumps([_sign(site, subscription), period, until.isoformat()])
    return f"{site.settings.public_url}/subscribe/confirm/{token}"


def read_confirm(session: Session, site: Site, token: str) -> tuple[Subscription, str] | None:
    """The subscription to begin and its period; nothing when the address is too old or not ours."""
    try:
        inner, period, until = site.signer("confirm").loads(token)
    except BadSignature:
        return None
    found = find(session, site, Subscription, inner)
    return (found, period) if found and datetime.datetime.fromisoformat(until) > site.now() else None


def is_signed(site: Site, table: type[Row], token: str) -> bool:
    """Whether the token was made here, be its row still there or not."""
    return _read(site, table, token) is not None


def find(session: Session, site: Site, table: type[Row], token: str) -> Row | None:
    """The row that a token was made for."""
    signed = _read(site, table, token)
    row = session.get(table, signed[0]) if signed else None
    return row if row and signed and row.created_at.isoformat() == signed[1] else None


def _sign(site: Site, row: SignInLink | Subscription) -> str:
    # With the moment, because a database may give the number of a deleted row to a new one.
    token = site.signer(row.__tablename__).dumps([row.id, row.created_at.isoformat()])
    return token if isinstance(token, str) else token.decode()


def _read(site: Site, table: type[Row], token: str) -> tuple[int, str] | None:
    try:
        number, created = site.signer(table.__tablename__).loads(token)
    except BadSignature:
        return None
    return number, created
