"""The front page: the feed by day, week, month, newest or trending."""

from __future__ import annotations

import functools
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query, Request
from starlette.responses import Response

from everyformer.site import feed
from everyformer.site.entries import entries
from everyformer.site.web import ASite, Visitor, page

router = APIRouter(include_in_schema=False)

TITLES = {"day": "Day", "week": "Week", "month": "Month", "newest": "Newest", "trending": "Trending"}


@router.get("/")
def front_page(
    request: Request,
    site: ASite,
    visitor: Visitor,
    view: feed.View = "day",
    date: str = "",
    week: str = "",
    month: str = "",
    tag: Annotated[str, Query(max_length=64)] = "",
    runs: bool | None = None,
    verdict: str = "",
    p: Annotated[int, Query(ge=0, le=10_000)] = 0,
) -> Response:
    """The feed; a page of entries alone for htmx, which asks for more of them."""
    today = site.now().date()
    try:
        filters = feed.Filters(tag, runs, verdict)
        for name, code in (("day", date), ("week", week), ("month", month)):
            if code:
                view = name  # type: ignore[assignment]
                period = feed.read_period(name, code)
                break
        else:
            period = None
    except feed.Unreadable as error:
        raise HTTPException(422, f"{error.field} {error}") from None
    earlier = later = None
    with site.database.read() as session:
        if view in ("day", "week", "month"):
            period = period or feed.period_of(view, feed.latest_day(session, today))
            listing = feed.in_period(session, period, filters, p)
            earlier, later = feed.neighbours(session, period, today)
        elif view == "newest":
            listing = feed.newest(session, filters, p)
        else:
            listing = feed.trending(site, session, filters, p)
        pieces = entries(request, site, session, visitor, listing)
        tags = site.remembered("tags", 60, lambda: feed.tags(session)[:16])
    chosen = {"view": view, "tag": tag, "runs": "yes" if runs else "no" if runs is False else "", "verdict": verdict}
    if period:
        chosen |= {"date" if view == "day" else view: period.code}
    link = functools.partial(address, chosen)
    return page(
        request,
        "entries.html" if p and "hx-request" in request.headers else "feed.html",
        visitor,
        titles=TITLES,
        view=view,
        filters=filters,
        period=period,
        earlier=earlier,
        later=later,
        entries=pieces,
        more=link(p=str(p + 1)) if listing.more else "",
        link=link,
        p=p,
        tags=tags,
    )


def address(chosen: dict[str, str], **changes: str) -> str:
    """The front page's address with what is chosen now and these changes; another view forgets the period."""
    values = chosen | changes
    if "view" in changes:
        for name in ("date", "week", "month"):
            values.pop(name, None)
    if any(values.get(name) for name in ("date", "week", "month")) or values.get("view") == "day":
        values.pop("view", None)
    query = urlencode({name: value for name, value in values.items() if value})
    return f"/?{query}" if query else "/"
