"""Mail: written into the database with what it is about, sent by the worker."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Any

import aiosmtplib
import sqlalchemy as sa
from sqlalchemy.orm import Session

from everyformer.site import feed, links
from everyformer.site.database import changed
from everyformer.site.display import plural, span
from everyformer.site.models import Digest, Mail, Paper, SignInLink, Subscription
from everyformer.site.web import Site

TRIES = 8
AT_ONCE = 10
TIMEOUT = 20  # seconds for each exchange with the mail server
LEASE = datetime.timedelta(minutes=15)  # longer than AT_ONCE mails can take; until then no other worker sends them
log = logging.getLogger(__name__)

SendOne = Callable[[EmailMessage], Awaitable[None]]


@dataclasses.dataclass
class Letter:
    """What a mail says: the values for its templates, and the address that ends a subscription."""

    subject: str
    values: dict[str, Any]
    unsubscribe: str = ""


def queue(session: Session, site: Site, recipient: str, kind: str, context: dict[str, Any]) -> None:
    """Put a mail into the outbox, in the transaction of what it is about. ``context`` holds numbers of rows only."""
    now = site.now()
    session.add(Mail(recipient=recipient, kind=kind, context=context, created_at=now, not_before=now))


async def send_due(site: Site) -> int:
    """Send what is due, with growing pauses between tries; the number of mails sent.

    A mail is marked as taken before it is sent and as sent afterwards, so that two workers do not send the same.
    """
    taken = _take(site)
    if not taken:
        return 0
    try:
        async with _way_out(site) as send:
            return sum([await _send(site, mail, send) for mail in taken])
    except (OSError, aiosmtplib.SMTPException) as error:  # there is no connection
        for mail in taken:
            _note_failure(site, mail, error)
        return 0


def write(site: Site, session: Session, mail: Mail) -> EmailMessage | None:
    """The message, text and HTML; nothing when there is no more reason to send it."""
    letter = LETTERS[mail.kind](site, session, mail.context)
    if letter is None:
        return None
    message = EmailMessage(policy=SMTP)
    message["From"] = site.settings.mail_from
    message["To"] = Address(addr_spec=mail.recipient)
    message["Subject"] = " ".join(letter.subject.split())
    message["Date"] = format_datetime(mail.created_at)
    domain = parseaddr(site.settings.mail_from)[1].rpartition("@")[2] or "localhost"
    message["Message-ID"] = f"<{mail.id}.{mail.created_at:%Y%m%d%H%M%S%f}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    if letter.unsubscribe:
        message["List-Unsubscribe"] = f"<{letter.unsubscribe}>"
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    values = {"site_url": site.settings.public_url, "today": site.now().date(), "unsubscribe": letter.unsubscribe}
    values |= letter.values
    plain = site.templates.overlay(autoescape=False).get_template(f"mail/{mail.kind}.txt").render(values)
    message.set_content(plain, cte="quoted-printable")
    html = site.templates.get_template(f"mail/{mail.kind}.html").render(values, subject=letter.subject)
    message.add_alternative(html, subtype="html", cte="quoted-printable")
    return message


# What each kind says.


def _sign_in(site: Site, session: Session, context: dict[str, Any]) -> Letter | None:
    link = session.get(SignInLink, context["link"])
    if link is None or link.used_at or link.expires_at <= site.now():
        return None
    minutes = round((link.expires_at - link.created_at).total_seconds() / 60)
    return Letter("Your link to sign in to everyformer", {"link": links.sign_in(site, link), "minutes": minutes})


def _confirm(site: Site, session: Session, context: dict[str, Any]) -> Letter | None:
    subscription = session.get(Subscription, context["subscription"])
    if subscription is None:
        return None
    period = context["period"]
    values = {
        "link": links.confirm(site, subscription, period),
        "days": links.CONFIRM_DAYS,
        "subscription": subscription,
        "period": period,
    }
    return Letter(f"Please confirm: {subscription.title}, every {period}", values)


def _digest(site: Site, session: Session, context: dict[str, Any]) -> Letter | None:
    digest = session.get(Digest, context["digest"])
    subscription = session.get(Subscription, digest.subscription_id) if digest else None
    if digest is None or subscription is None or not subscription.active:
        return None
    found = {paper.id: paper for paper in session.scalars(sa.select(Paper).where(Paper.id.in_(context["papers"])))}
    papers = [found[number] for number in context["papers"] if number in found]
    view = "week" if "W" in digest.period else "day"
    when = span(feed.read_period(view, digest.period), site.now().date())
    values = {"papers": papers, "subscription": subscription, "when": when}
    return Letter(f"{plural(len(papers), 'paper')}: {when}", values, links.unsubscribe(site, subscription))


LETTERS: dict[str, Callable[[Site, Session, dict[str, Any]], Letter | None]] = {
    "sign-in": _sign_in,
    "confirm": _confirm,
    "digest": _digest,
}


# Sending.


def _take(site: Site) -> list[Mail]:
    """Up to AT_ONCE due mails that are now this worker's to send."""
    now = site.now()
    due = (Mail.sent_at.is_(None)) & (Mail.not_before <= now) & (Mail.attempts < TRIES)
    with site.database.read() as session:
        numbers = session.scalars(sa.select(Mail.id).where(due).order_by(Mail.id).limit(AT_ONCE)).all()
    if not numbers:
        return []
    with site.database.write() as session:
        take = sa.update(Mail).values(not_before=now + LEASE, attempts=Mail.attempts + 1)
        ours = [number for number in numbers if changed(session, take.where(Mail.id == number, due))]
        return list(session.scalars(sa.select(Mail).where(Mail.id.in_(ours)).order_by(Mail.id)))


@contextlib.asynccontextmanager
async def _way_out(site: Site) -> AsyncIterator[SendOne]:
    """A connection to the mail server; without one set, a folder that takes the messages as files."""
    settings = site.settings
    if not settings.smtp_host:

        async def keep(message: EmailMessage) -> None:
            _write_file(site, message)

        yield keep
        return
    password = settings.smtp_password.get_secret_value()
    server = aiosmtplib.SMTP(
        hostname=settings.smtp_host,
        port=settings.smtp_port,
        username=settings.smtp_user or None,
        password=password or None,
        use_tls=settings.smtp_security == "tls",
        start_tls=settings.smtp_security == "starttls",
        timeout=TIMEOUT,
    )
    await server.connect()

    async def send(message: EmailMessage) -> None:
        if not server.is_connected:
            await server.connect()
        await server.send_message(message)

    try:
        yield send
    finally:
        with contextlib.suppress(OSError, aiosmtplib.SMTPException):
            await server.quit()


async def _send(site: Site, mail: Mail, send: SendOne) -> bool:
    """Send one mail that is taken, and note what came of it."""
    try:
        with site.database.read() as session:
            message = write(site, session, mail)
        if message is None:
            _note(site, mail, attempts=TRIES, context={}, error="there was no more reason to send it")
            return False
        await send(message)
    except Exception as error:  # whatever it is, it must not hold up the others
        _note_failure(site, mail, error)
        return False
    _note(site, mail, sent_at=site.now(), context={}, error="")
    return True


def _note_failure(site: Site, mail: Mail, error: Exception) -> None:
    """Try again after 1, 4, 16 ... minutes, at most six hours; never when the address itself was refused for good."""
    refused = isinstance(error, aiosmtplib.SMTPRecipientsRefused) and all(one.code >= 500 for one in error.recipients)
    pause = datetime.timedelta(minutes=min(4 ** (mail.attempts - 1), 360))
    log.warning("mail %d, try %d of %d: %s", mail.id, mail.attempts, TRIES, type(error).__name__)
    _note(
        site,
        mail,
        attempts=TRIES if refused else mail.attempts,
        not_before=site.now() + pause,
        error=f"{type(error).__name__}: {error}"[:500],
    )


def _note(site: Site, mail: Mail, **values: Any) -> None:
    with site.database.write() as session:
        session.execute(sa.update(Mail).where(Mail.id == mail.id).values(**values))


def _write_file(site: Site, message: EmailMessage) -> None:
    """Keep a message as ``data/mail/<number>.eml``, for the owner's eyes: it may sign somebody in."""
    folder = site.settings.data / "mail"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = message["Message-ID"].strip("<>").partition("@")[0]
    handle = os.open(folder / f".{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with open(handle, "wb") as file:
        file.write(message.as_bytes())
    os.replace(folder / f".{name}", folder / f"{name}.eml")
