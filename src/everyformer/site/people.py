"""People: signing in by a mailed link, what they voted for and saved, their account and its end."""

from __future__ import annotations

import dataclasses
import datetime
import re
import secrets
import unicodedata
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from everyformer.site import links, mail
from everyformer.site.database import changed
from everyformer.site.models import Comment, Mail, Paper, Person, Saved, SignedIn, SignInLink, Spent, Subscription, Vote
from everyformer.site.web import SESSION_DAYS, Site, hash_of

LINK_MINUTES = 15
# Whoever starts the page on this machine. No form takes this address, so only `curator_link` leads to it.
LOCAL_CURATOR = "curator@localhost"
ADDRESS = re.compile(
    r"(?=.{3,254}$)(?=[^@]{1,64}@)[a-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
    re.ASCII,
)
JOINERS = "\u200c\u200d"  # invisible, and part of how some names are written


def read_address(text: str) -> str:
    """An email address in lower case; raises ``ValueError`` that says what is accepted."""
    address = text.strip(" ").lower()
    if not ADDRESS.fullmatch(address):
        raise ValueError("This is not an email address. One looks like ada@example.org.")
    return address


def read_name(text: str) -> str:
    """A name to show; raises ``ValueError`` unless it has 1 to 80 characters and none that controls the text."""
    name = " ".join(text.split())
    if not name.strip(JOINERS):
        raise ValueError("A name needs at least one character.")
    if len(name) > 80:
        raise ValueError(f"A name may have 80 characters, this one has {len(name)}.")
    if any(unicodedata.category(letter).startswith("C") and letter not in JOINERS for letter in name):
        raise ValueError("A name may not hold control characters.")
    return name


# Signing in.


@dataclasses.dataclass(frozen=True)
class Entered:
    """Somebody just signed in: the value of the cookie, which only its owner keeps, and where to go."""

    cookie: str
    next: str
    is_new: bool


def send_link(site: Site, email: str, back: str) -> None:
    """Mail a link that signs ``email`` in and leads to ``back``; the same whether or not the address is known."""
    with site.database.write() as session:
        link = _new_link(session, site, email, back, LINK_MINUTES)
        mail.queue(session, site, email, "sign-in", {"link": link.id})


def curator_link(site: Site) -> str:
    """A link, good once and for an hour, that makes whoever starts the page on this machine a curator."""
    with site.database.write() as session:
        link = _new_link(session, site, LOCAL_CURATOR, "/", 60)
    return links.sign_in(site, link)


def find_link(session: Session, site: Site, token: str) -> SignInLink | None:
    """The link that can still be used, or nothing."""
    link = links.find(session, site, SignInLink, token)
    return link if link and link.used_at is None and link.expires_at > site.now() else None


def enter(site: Site, token: str, former_cookie: str = "") -> Entered | None:
    """Use the link up and begin a session; nothing when it is used or expired. Of two at once one gets in."""
    now = site.now()
    cookie = secrets.token_urlsafe(32)
    with site.database.write() as session:
        link = find_link(session, site, token)
        if link is None:
            return None
        mark = sa.update(SignInLink).where(SignInLink.id == link.id, SignInLink.used_at.is_(None)).values(used_at=now)
        if not changed(session, mark):
            return None
        person, is_new = _person(session, site, link.email)
        session.execute(sa.delete(SignedIn).where(SignedIn.hash == hash_of(former_cookie)))
        until = now + datetime.timedelta(days=SESSION_DAYS)
        session.add(SignedIn(hash=hash_of(cookie), person_id=person.id, created_at=now, expires_at=until))
        return Entered(cookie, link.next, is_new)


def leave(site: Site, cookie: str) -> None:
    """End the session of this cookie."""
    with site.database.write() as session:
        session.execute(sa.delete(SignedIn).where(SignedIn.hash == hash_of(cookie)))


def leave_everywhere(site: Site, person: Person) -> None:
    """End every session of ``person``."""
    with site.database.write() as session:
        session.execute(sa.delete(SignedIn).where(SignedIn.person_id == person.id))


def _new_link(session: Session, site: Site, email: str, back: str, minutes: int) -> SignInLink:
    now = site.now()
    link = SignInLink(email=email, next=back, created_at=now, expires_at=now + datetime.timedelta(minutes=minutes))
    session.add(link)
    session.flush()
    return link


def _person(session: Session, site: Site, email: str) -> tuple[Person, bool]:
    """The account of an address, made at the first sign-in; the role follows the settings each time."""
    values = {"email": email, "name": "reader", "role": "reader", "created_at": site.now()}
    is_new = site.database.insert_once(session, Person, ["email"], values)
    person = session.scalars(sa.select(Person).where(Person.email == email)).one()
    if is_new:  # not the address: others see the name
        person.name = "curator" if email == LOCAL_CURATOR else f"reader {person.id}"
    is_curator = email == LOCAL_CURATOR or email in site.settings.curator_addresses
    person.role = "curator" if is_curator else "reader"
    return person, is_new


# Votes and saved papers.


def set_vote(site: Site, person: Person, paper: int, up: bool) -> None:
    """Vote for a paper, or take the vote back; repeating it changes nothing."""
    with site.database.write() as session:
        lock(session, [paper])
        _set_mark(session, site, Vote, person, paper, up)
        recount(session, [paper])


def set_saved(site: Site, person: Person, paper: int, kept: bool) -> None:
    """Put a paper on the person's list, or take it off; repeating it changes nothing."""
    with site.database.write() as session:
        _set_mark(session, site, Saved, person, paper, kept)


def _set_mark(session: Session, site: Site, table: type[Vote | Saved], person: Person, paper: int, there: bool) -> None:
    if there:
        values = {"person_id": person.id, "paper_id": paper, "created_at": site.now()}
        site.database.insert_once(session, table, ["person_id", "paper_id"], values)
    else:
        session.execute(sa.delete(table).where(table.person_id == person.id, table.paper_id == paper))


def lock(session: Session, papers: Iterable[int]) -> None:
    """Hold the rows of ``papers`` until the end: what is counted next is all there is. Always in the same order."""
    session.execute(sa.select(Paper.id).where(Paper.id.in_(list(papers))).order_by(Paper.id).with_for_update())


def recount(session: Session, papers: Iterable[int]) -> None:
    """Count votes and comments of ``papers``, which the caller has locked, from their tables: nothing drifts."""
    session.flush()
    count = sa.select(sa.func.count())
    votes = count.where(Vote.paper_id == Paper.id).scalar_subquery()
    comments = count.where(Comment.paper_id == Paper.id, Comment.deleted_at.is_(None)).scalar_subquery()
    session.execute(
        sa.update(Paper)
        .where(Paper.id.in_(list(papers)))
        .values(votes=votes, comments=comments, points=votes + 0.5 * comments)
        .execution_options(synchronize_session=False)
    )


# The account.


def rename(site: Site, person: Person, name: str) -> None:
    """Give ``person`` the name that others see; ``name`` as :func:`read_name` returns it."""
    with site.database.write() as session:
        session.execute(sa.update(Person).where(Person.id == person.id).values(name=name))


def own_data(site: Site, person: Person) -> dict[str, Any]:
    """Everything that is kept about ``person``, ready for JSON."""
    with site.database.read() as session:

        def papers(table: type[Vote | Saved]) -> list[dict[str, str]]:
            found = session.execute(
                sa.select(Paper.arxiv, Paper.title, table.created_at)
                .join(table, table.paper_id == Paper.id)
                .where(table.person_id == person.id)
                .order_by(table.created_at, Paper.id)
            )
            return [{"arxiv": arxiv, "title": title, "at": at.isoformat()} for arxiv, title, at in found]

        comments = session.execute(
            sa.select(Paper.arxiv, Comment.markdown, Comment.created_at)
            .join(Paper, Comment.paper_id == Paper.id)
            .where(Comment.person_id == person.id, Comment.deleted_at.is_(None))
            .order_by(Comment.id)
        )
        subscriptions = session.scalars(
            sa.select(Subscription).where(Subscription.email == person.email).order_by(Subscription.id)
        )
        sessions = sa.select(SignedIn.created_at).where(SignedIn.person_id == person.id).order_by(SignedIn.created_at)
        submitted = sa.select(Paper.arxiv).where(Paper.submitted_by == person.id).order_by(Paper.id)
        return {
            "email": person.email,
            "name": person.name,
            "role": person.role,
            "since": person.created_at.isoformat(),
            "votes": papers(Vote),
            "saved": papers(Saved),
            "comments": [{"arxiv": arxiv, "text": text, "at": at.isoformat()} for arxiv, text, at in comments],
            "submitted": list(session.scalars(submitted)),
            "subscriptions": [
                {
                    "scope": one.scope,
                    "value": one.value,
                    "period": one.period,
                    "asked": one.created_at.isoformat(),
                    "confirmed": one.confirmed_at.isoformat() if one.confirmed_at else None,
                    "ended": one.ended_at.isoformat() if one.ended_at else None,
                }
                for one in subscriptions
            ],
            "sessions": [at.isoformat() for at in session.scalars(sessions)],
        }


def delete_account(site: Site, person: Person) -> None:
    """Remove ``person`` and what is theirs; comments keep an empty place, because others may have replied."""
    with site.database.write() as session:
        voted = sa.select(Vote.paper_id).where(Vote.person_id == person.id)
        commented = sa.select(Comment.paper_id).where(Comment.person_id == person.id)
        papers = set(session.scalars(voted)) | set(session.scalars(commented))
        lock(session, papers)
        session.execute(
            sa.update(Comment)
            .where(Comment.person_id == person.id)
            .values(markdown="", html="", person_id=None, deleted_at=sa.func.coalesce(Comment.deleted_at, site.now()))
        )
        # Votes, saved papers and sessions go with the person.
        session.execute(sa.delete(Person).where(Person.id == person.id))
        for table, address in ((Subscription, Subscription.email), (SignInLink, SignInLink.email)):
            session.execute(sa.delete(table).where(address == person.email))
        session.execute(sa.delete(Mail).where(Mail.recipient == person.email))
        recount(session, papers)


def tidy(site: Site) -> None:
    """Delete what has had its time: links, sessions, counts of rate limits, old mail, unconfirmed subscriptions."""
    now = site.now()

    def before(**age: int) -> datetime.datetime:
        return now - datetime.timedelta(**age)

    with site.database.write() as session:
        session.execute(sa.delete(SignInLink).where(SignInLink.expires_at < before(days=1)))
        session.execute(sa.delete(SignedIn).where(SignedIn.expires_at < now))
        session.execute(sa.delete(Spent).where(Spent.since < before(days=2)))
        session.execute(sa.delete(Mail).where(Mail.created_at < before(days=30)))
        unconfirmed = Subscription.confirmed_at.is_(None) & (Subscription.created_at < before(days=30))
        session.execute(sa.delete(Subscription).where(unconfirmed))
