"""Which papers, in which order: by day, week or month, newest, trending, and with filters."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.orm import Session

from everyformer.catalog import VERDICTS
from everyformer.site.models import ClaimRow, Paper, PaperTag

if TYPE_CHECKING:
    from everyformer.site.web import Site

View = Literal["day", "week", "month", "newest", "trending"]
VIEWS: tuple[str, ...] = get_args(View)
PAGE = 25


class Unreadable(ValueError):
    """A request that cannot be read; ``field`` says where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclasses.dataclass(frozen=True)
class Period:
    """A day, a week or a month: from ``first`` up to and without ``end``."""

    view: str
    first: datetime.date
    end: datetime.date

    @property
    def code(self) -> str:
        """As in addresses: ``2026-11-25``, ``2026-W48``, ``2026-11``."""
        if self.view == "day":
            return self.first.isoformat()
        if self.view == "week":
            year, week, _ = self.first.isocalendar()
            return f"{year}-W{week:02}"
        return f"{self.first:%Y-%m}"

    def before(self) -> Period:
        """The one that ends where this one begins."""
        return period_of(self.view, self.first - datetime.timedelta(days=1))


def period_of(view: str, day: datetime.date) -> Period:
    """The day, week or month that holds ``day``."""
    if view == "day":
        return Period(view, day, day + datetime.timedelta(days=1))
    if view == "week":
        first = day - datetime.timedelta(days=day.weekday())
        return Period(view, first, first + datetime.timedelta(days=7))
    first = day.replace(day=1)
    return Period(view, first, (first + datetime.timedelta(days=31)).replace(day=1))


def read_period(view: str, code: str) -> Period:
    """The period that ``code`` names; raises :class:`Unreadable` that says how it is written."""
    patterns = {"day": r"\d{4}-\d{2}-\d{2}", "week": r"\d{4}-W\d{2}", "month": r"\d{4}-\d{2}"}
    examples = {"day": "2026-11-25", "week": "2026-W48", "month": "2026-11"}
    field = "date" if view == "day" else view
    try:
        if not re.fullmatch(patterns[view], code, re.ASCII):
            raise ValueError
        if view == "week":
            day = datetime.date.fromisocalendar(int(code[:4]), int(code[6:]), 1)
        else:
            day = datetime.date.fromisoformat(code if view == "day" else f"{code}-01")
        return period_of(view, day)
    except (ValueError, OverflowError):
        raise Unreadable(field, f"must be a {view} like {examples[view]}, got {code!r}") from None


@dataclasses.dataclass(frozen=True)
class Filters:
    """What a list is narrowed to; empty values narrow nothing."""

    tag: str = ""
    runs: bool | None = None
    verdict: str = ""

    def __post_init__(self) -> None:
        if self.verdict and self.verdict not in VERDICTS:
            raise Unreadable("verdict", f"must be one of {', '.join(VERDICTS)}, got {self.verdict!r}")

    def apply(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        """``statement`` over papers with these conditions."""
        if self.tag:
            # A probe for each paper met in order, and no list of all that have the tag.
            tagged = sa.exists().where(PaperTag.tag == self.tag, PaperTag.paper_id == Paper.id)
            statement = statement.where(tagged)
        if self.runs is not None:
            statement = statement.where(Paper.runs_here.is_(self.runs))
        if self.verdict:
            judged = sa.select(ClaimRow.paper_id).where(ClaimRow.verdict == self.verdict)
            statement = statement.where(Paper.id.in_(judged))
        return statement


class Listing:
    """A page of papers, the first ``limit`` of the ``chosen`` numbers, and whether there are more.

    What chooses and sorts is thereby no longer than an index's entry; :attr:`papers` reads the papers themselves, while
    ``session`` is open.
    """

    def __init__(self, session: Session, chosen: Sequence[int], limit: int) -> None:
        self.session = session
        self.numbers = list(chosen[:limit])
        self.more = len(chosen) > limit

    @functools.cached_property
    def papers(self) -> list[Paper]:
        """The papers in their order."""
        asked = sa.select(Paper).where(Paper.id.in_(self.numbers))
        found = {paper.id: paper for paper in self.session.scalars(asked)}
        return [found[number] for number in self.numbers if number in found]


def in_period(session: Session, period: Period, filters: Filters, page: int = 0, limit: int = PAGE) -> Listing:
    """The papers submitted in ``period``: most points first, among equals those that run here, then by date."""
    statement = filters.apply(
        sa.select(Paper.id).where(Paper.submitted_on >= period.first, Paper.submitted_on < period.end)
    ).order_by(Paper.points.desc(), Paper.runs_here.desc(), Paper.ordered_on.desc(), Paper.id.desc())
    return _page(session, statement, page, limit)


def newest(session: Session, filters: Filters, page: int = 0, limit: int = PAGE) -> Listing:
    """All papers by date of publication."""
    statement = filters.apply(sa.select(Paper.id)).order_by(Paper.ordered_on.desc(), Paper.id.desc())
    return _page(session, statement, page, limit)


def ranking(session: Session, now: datetime.datetime, filters: Filters) -> list[int]:
    """Every paper with votes or comments by (votes + comments / 2) / (hours + 2)^1.5, the highest first."""
    hours = _hours_since(session, now)
    scored = sa.select(Paper.id).where(Paper.points > 0)
    order = (Paper.points / sa.func.power(hours + 2, 1.5)).desc(), Paper.id.desc()
    return list(session.scalars(filters.apply(scored).order_by(*order)))


def trending(site: Site, session: Session, filters: Filters, page: int = 0, limit: int = PAGE) -> Listing:
    """The papers of the :func:`ranking`, which is made twice a minute; those without votes and comments follow."""
    ranked = site.remembered(("ranking", filters), 30, lambda: ranking(session, site.now(), filters))
    start = page * limit
    chosen = list(ranked[start : start + limit + 1])
    if len(chosen) <= limit:
        silent = filters.apply(sa.select(Paper.id).where(Paper.points == 0))
        silent = silent.order_by(Paper.ordered_on.desc(), Paper.id.desc())
        chosen += session.scalars(silent.offset(max(0, start - len(ranked))).limit(limit + 1 - len(chosen)))
    return Listing(session, chosen, limit)


def latest_day(session: Session, today: datetime.date) -> datetime.date:
    """The last day up to ``today`` on which a paper was submitted; ``today`` when there is none."""
    found = session.scalar(sa.select(sa.func.max(Paper.submitted_on)).where(Paper.submitted_on <= today))
    return found or today


def neighbours(session: Session, period: Period, today: datetime.date) -> tuple[Period | None, Period | None]:
    """The nearest earlier and later periods that have papers: no reader walks through empty days."""
    earlier = session.scalar(sa.select(sa.func.max(Paper.submitted_on)).where(Paper.submitted_on < period.first))
    later = session.scalar(
        sa.select(sa.func.min(Paper.submitted_on)).where(Paper.submitted_on >= period.end, Paper.submitted_on <= today)
    )
    return (
        period_of(period.view, earlier) if earlier else None,
        period_of(period.view, later) if later else None,
    )


def tags(session: Session) -> list[str]:
    """Every tag, the most used first."""
    count = sa.func.count().label("papers")
    found = session.execute(sa.select(PaperTag.tag, count).group_by(PaperTag.tag).order_by(count.desc(), PaperTag.tag))
    return [tag for tag, _ in found]


def _hours_since(session: Session, now: datetime.datetime) -> sa.ColumnElement[Any]:
    """Hours from a paper's submission to ``now``, never below zero, in the database's own terms."""
    moment = sa.bindparam("now", now, Paper.submitted_at.type)
    if session.get_bind().dialect.name == "sqlite":
        hours: sa.ColumnElement[Any] = (sa.func.julianday(moment) - sa.func.julianday(Paper.submitted_at)) * 24
        return sa.func.max(hours, 0.0)
    seconds = sa.func.extract("epoch", sa.cast(moment, sa.DateTime) - sa.cast(Paper.submitted_at, sa.DateTime))
    return sa.func.greatest(sa.cast(seconds, sa.Float) / 3600, 0.0)


def _page(session: Session, ordered: sa.Select[int], page: int, limit: int) -> Listing:
    return Listing(session, session.scalars(ordered.offset(page * limit).limit(limit + 1)).all(), limit)
