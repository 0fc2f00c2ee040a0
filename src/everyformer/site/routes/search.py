"""The page of search results."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from everyformer.site import search
from everyformer.site.entries import entries
from everyformer.site.query import Malformed, parse
from everyformer.site.web import ASite, Visitor, its_turn, page

router = APIRouter(include_in_schema=False)


@router.get("/search", dependencies=[Depends(its_turn)])
def search_page(
    request: Request, site: ASite, visitor: Visitor, q: str = "", p: Annotated[int, Query(ge=0, le=10_000)] = 0
) -> Response:
    """Papers for a query, with what the query language can do; a page of entries alone for htmx."""
    found, more, wrong, note = [], False, "", ""
    try:
        query = parse(q)
    except Malformed as error:
        wrong = str(error)
    else:
        if query.only_stop_words:
            note = "These words are in nearly every paper. Add one that says what you look for."
        with site.database.read() as session:
            listing = search.search(site, session, query, p)
            found, more = entries(request, site, session, visitor, listing), listing.more
    return page(
        request,
        "entries.html" if p and "hx-request" in request.headers else "search.html",
        visitor,
        status=422 if wrong else 200,
        query=q,
        wrong=wrong,
        note=note,
        entries=found,
        more=f"/search?{urlencode({'q': q, 'p': p + 1})}" if more else "",
        p=p,
        feeds={kind: f"/feed.{kind}?{urlencode({'q': q})}" for kind in ("atom", "rss", "json")},
        subscribe=f"/subscribe?{urlencode({'scope': 'query', 'value': q})}",
    )
