"""Feeds of every view, tag and search, the page that lists them, and a paper's page as text."""

from __future__ import annotations

import datetime
import hashlib
from email.utils import format_datetime, parsedate_to_datetime
from typing import Annotated, Literal
from urllib.parse import urlencode

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from everyformer.catalog import VERDICTS
from everyformer.site import feed, search, syndication
from everyformer.site.models import Paper
from everyformer.site.query import Malformed, parse
from everyformer.site.routes import api
from everyformer.site.web import ASite, Site, Visitor, page

router = APIRouter(include_in_schema=False)

LARGEST = 50
RECENT = datetime.timedelta(days=30)
VIEWS = {
    "day": ("New papers", "every paper as it comes, the latest first"),
    "week": ("This week", "the papers of the latest week, most votes first"),
    "month": ("This month", "the papers of the latest month, most votes first"),
    "newest": ("Newest", "by date of publication"),
    "trending": ("Trending", "what is voted for now"),
}


@router.get("/feeds")
def feeds(request: Request, site: ASite, visitor: Visitor) -> Response:
    """Which feeds there are."""
    with site.database.read() as session:
        tags = feed.tags(session)
    lists = [(title, about, {"view": view} if view != "day" else {}) for view, (title, about) in VIEWS.items()]
    lists += [
        (f"Claims {verdict}", "papers with such a claim", {"view": "newest", "verdict": verdict})
        for verdict in VERDICTS
    ]
    rows = [
        (
            title,
            about,
            {kind: f"/feed.{kind}" + (f"?{urlencode(query)}" if query else "") for kind in syndication.KINDS},
        )
        for title, about, query in lists
    ]
    return page(request, "feeds.html", visitor, rows=rows, tags=tags, example="faster attention for video")


@router.get("/feed.{kind}")
def one_feed(
    kind: Literal["atom", "rss", "json"],
    request: Request,
    site: ASite,
    view: feed.View = "day",
    date: str = "",
    week: str = "",
    month: str = "",
    tag: Annotated[str, Query(max_length=64)] = "",
    runs: bool | None = None,
    verdict: str = "",
    q: str = "",
) -> Response:
    """Fifty papers of a list; the view of a day is every paper as it comes, so that no reader misses one."""
    chosen = {"view": view if view != "day" else "", "date": date, "week": week, "month": month, "tag": tag,
              "runs": "" if runs is None else "yes" if runs else "no", "verdict": verdict, "q": q}  # fmt: skip
    query = urlencode({name: value for name, value in chosen.items() if value})
    try:
        with site.database.read() as session:
            if q:
                title, papers = f"Papers for “{q}”", _found(site, session, q)
            else:
                filters = feed.Filters(tag, runs, verdict)
                title, papers = _listed(site, session, view, {"day": date, "week": week, "month": month}, filters)
    except (feed.Unreadable, Malformed) as error:
        raise HTTPException(422, f"{getattr(error, 'field', 'q')}: {error}") from None
    origin = site.settings.public_url
    made = syndication.Feed(
        title=f"{title} · everyformer",
        address=f"{origin}/feed.{kind}" + (f"?{query}" if query else ""),
        page=f"{origin}/{'search' if q else ''}" + (f"?{query}" if query else ""),
        papers=papers,
        started=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    )
    body = syndication.write(made, kind, site.settings)
    # Votes change the other lists, which then have no newer date.
    dated = bool(q) or view in ("day", "newest")
    return _conditional(request, body, syndication.KINDS[kind], made.updated, dated)


@router.get("/papers/{key:path}.md")
def paper_as_text(key: str, site: ASite) -> Response:
    """A paper's page as Markdown, at the address where existing clients look for it."""
    return api.paper_as_text(key, site)


def _listed(
    site: Site, session: Session, view: feed.View, codes: dict[str, str], filters: feed.Filters
) -> tuple[str, list[Paper]]:
    title = VIEWS[view][0]
    for name, code in codes.items():
        if code:
            period = feed.read_period(name, code)
            return f"Papers of {code}", feed.in_period(session, period, filters, 0, LARGEST).papers
    if filters.tag:
        title += f": {filters.tag}"
    if filters.verdict:
        title += f", {filters.verdict}"
    if view in ("week", "month"):
        period = feed.period_of(view, feed.latest_day(session, site.now().date()))
        return title, feed.in_period(session, period, filters, 0, LARGEST).papers
    if view == "newest":
        return title, feed.newest(session, filters, 0, LARGEST).papers
    if view == "trending":
        return title, feed.trending(site, session, filters, 0, LARGEST).papers
    latest = filters.apply(sa.select(Paper)).order_by(Paper.submitted_on.desc(), Paper.id.desc())
    return title, list(session.scalars(latest.limit(LARGEST)))


def _found(site: Site, session: Session, q: str) -> list[Paper]:
    """The best of the last days, then the best of all: a new paper is there even if older ones fit better."""
    query = parse(q)
    today = site.now().date()
    recent = feed.Period("days", today - RECENT, today + datetime.timedelta(days=1))
    found = search.search(site, session, query, 0, LARGEST, within=recent).papers
    if len(found) < LARGEST:
        found += search.search(site, session, query, 0, LARGEST).papers
    return list({paper.id: paper for paper in found}.values())[:LARGEST]


def _conditional(request: Request, body: bytes, media_type: str, updated: datetime.datetime, dated: bool) -> Response:
    """The body, or 304 for a reader who has it, as its ETag says, or its date where ``dated``."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {
        "ETag": tag,
        "Last-Modified": format_datetime(updated, usegmt=True),
        "Cache-Control": "public, max-age=300",
    }
    if known := request.headers.get("if-none-match"):
        same = tag in (part.strip().removeprefix("W/") for part in known.split(","))
    else:
        same = dated and _not_older(request.headers.get("if-modified-since", ""), updated)
    if same:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=f"{media_type}; charset=utf-8", headers=headers)


def _not_older(since: str, updated: datetime.datetime) -> bool:
    try:
        return parsedate_to_datetime(since) >= updated
    except (TypeError, ValueError):
        return False
