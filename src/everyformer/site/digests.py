"""Subscriptions and their digests: what was new on a day or in a week that is over."""

from __future__ import annotations

import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from everyformer.site import feed, links, mail, query, search
from everyformer.site.feed import Filters, Period
from everyformer.site.models import Digest, Paper, PaperTag, Subscription
from everyformer.site.people import read_address
from everyformer.site.web import Site

LARGEST = 10  # papers in a digest
HOUR = 7  # UTC, at which the day before, or on Monday the week before, is sent
PERIODS = ("day", "week")


class Unwanted(ValueError):
    """A subscription that cannot be made; ``field`` says why not."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def read(session: Session, email: str, scope: str, value: str, period: str) -> Subscription:
    """A subscription as it was asked for, not yet kept; raises :class:`Unwanted`."""
    try:
        email = read_address(email)
    except ValueError as error:
        raise Unwanted("email", str(error)) from None
    if period not in PERIODS:
        raise Unwanted("period", "Choose every day or every week.")
    value = " ".join(value.split())
    if scope == "all":
        value = ""
    elif scope == "tag":
        value = value.lower()
        if (
            not value.isprintable()
            or session.scalar(sa.select(PaperTag.tag).where(PaperTag.tag == value).limit(1)) is None
        ):
            raise Unwanted("value", "No paper carries this tag.")
    elif scope == "query":
        try:
            if not query.parse(value).text:
                raise Unwanted("value", "Say what to search for.")
        except query.Malformed as error:
            raise Unwanted("value", str(error)) from None
    else:
        raise Unwanted("scope", "Choose all papers, a tag or a search.")
    return Subscription(email=email, scope=scope, value=value, period=period)


def ask(site: Site, asked: Subscription) -> None:
    """Keep ``asked`` unconfirmed and mail a link that confirms it; the same whether or not it is known already."""
    key = {"email": asked.email, "scope": asked.scope, "value": asked.value}
    with site.database.write() as session:
        values = {**key, "period": asked.period, "created_at": site.now()}
        site.database.insert_once(session, Subscription, list(key), values)
        kept = session.scalars(sa.select(Subscription).filter_by(**key)).one()
        mail.queue(session, site, kept.email, "confirm", {"subscription": kept.id, "period": asked.period})


def confirm(site: Site, token: str) -> Subscription | None:
    """Begin the subscription of this link, or change its period; nothing when the link is too old."""
    with site.database.write() as session:
        found = links.read_confirm(session, site, token)
        if found is None:
            return None
        subscription, period = found
        subscription.period = period
        if not subscription.active:
            subscription.confirmed_at, subscription.ended_at = site.now(), None
        return subscription


def end(site: Site, subscription: int) -> None:
    """Send nothing more; repeating it changes nothing."""
    with site.database.write() as session:
        ended = sa.func.coalesce(Subscription.ended_at, site.now())
        session.execute(sa.update(Subscription).where(Subscription.id == subscription).values(ended_at=ended))


def due_period(view: str, now: datetime.datetime) -> Period:
    """The last day or week that is over and due at ``now``."""
    return feed.period_of(view, (now - datetime.timedelta(hours=HOUR)).date()).before()


def queue_due(site: Site) -> int:
    """Put every digest that is due into the outbox, each once; the number of mails.

    A subscriber gets the periods that came due after the confirmation. A digest without papers is noted and not sent.
    """
    queued = 0
    for view in PERIODS:
        period = due_period(view, site.now())
        chosen: dict[tuple[str, str], list[int]] = {}  # many subscribe to the same
        with site.database.read() as session:
            waiting = _waiting(session, period)
            for one in waiting:
                if (one.scope, one.value) not in chosen:
                    chosen[one.scope, one.value] = [paper.id for paper in papers_of(site, session, one, period)]
        queued += sum(_queue(site, one, period, chosen[one.scope, one.value]) for one in waiting)
    return queued


def _waiting(session: Session, period: Period) -> list[Subscription]:
    """The subscriptions for which ``period`` came due after they were confirmed, and is not done."""
    came_due = datetime.datetime.combine(period.end, datetime.time(HOUR), datetime.timezone.utc)
    done = sa.select(Digest.subscription_id).where(Digest.period == period.code)
    statement = sa.select(Subscription).where(
        Subscription.period == period.view,
        Subscription.confirmed_at < came_due,
        Subscription.ended_at.is_(None),
        Subscription.id.not_in(done),
    )
    return list(session.scalars(statement.order_by(Subscription.id)))


def papers_of(site: Site, session: Session, subscription: Subscription, period: Period) -> list[Paper]:
    """What a digest tells of: the first papers submitted in ``period``, or those that the search finds."""
    if subscription.scope == "query":
        try:
            wanted = query.parse(subscription.value)
        except query.Malformed:  # what was accepted once; later versions may read more strictly
            return []
        return search.search(site, session, wanted, limit=LARGEST, within=period).papers
    filters = Filters(tag=subscription.value)
    return feed.in_period(session, period, filters, limit=LARGEST).papers


def latest(site: Site, session: Session) -> tuple[Period, list[Paper]]:
    """The last day that is over and has papers, and what its digest for all papers tells."""
    over = due_period("day", site.now())
    period = feed.period_of("day", feed.latest_day(session, over.first))
    return period, feed.in_period(session, period, Filters(), limit=LARGEST).papers


def _queue(site: Site, subscription: Subscription, period: Period, papers: list[int]) -> bool:
    """Note the digest and its mail in one transaction; of two workers one does."""
    with site.database.write() as session:
        values = {
            "subscription_id": subscription.id,
            "period": period.code,
            "papers": len(papers),
            "created_at": site.now(),
        }
        if not site.database.insert_once(session, Digest, ["subscription_id", "period"], values) or not papers:
            return False
        number = session.scalars(
            sa.select(Digest.id).where(Digest.subscription_id == subscription.id, Digest.period == period.code)
        ).one()
        mail.queue(session, site, subscription.email, "digest", {"digest": number, "papers": papers})
        return True
