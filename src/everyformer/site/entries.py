"""Papers as the feed and search show them, a piece of a page each.

Making such a piece costs more than finding the paper. For readers who are not signed in it is the same for all of them,
and is made once a minute, or when votes or comments come.
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict

import sqlalchemy as sa
from fastapi import Request
from markupsafe import Markup
from sqlalchemy.orm import Session

from everyformer.site.feed import Listing
from everyformer.site.models import Paper, Person, Saved, Vote
from everyformer.site.web import Site, form_token

SECONDS = 60
MOST = 5000


class Kept:
    """The pieces that were made lately."""

    def __init__(self) -> None:
        self.pieces: OrderedDict[tuple[object, ...], tuple[float, Markup]] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> Markup | None:
        """The piece, if it is young enough."""
        found = self.pieces.get(key)
        return found[1] if found and time.monotonic() - found[0] < SECONDS else None

    def put(self, key: tuple[object, ...], piece: Markup) -> None:
        """Keep a piece, in place of the oldest."""
        self.pieces.pop(key, None)
        self.pieces[key] = (time.monotonic(), piece)
        while len(self.pieces) > MOST:
            self.pieces.popitem(last=False)


def entries(request: Request, site: Site, session: Session, visitor: Person | None, listing: Listing) -> list[Markup]:
    """The pieces of a listing, in its order."""
    today = site.now().date()
    if visitor:
        token = functools.partial(form_token, request)
        voted = marked(session, Vote, visitor, listing.numbers)
        return [_make(site, paper, visitor, paper.id in voted, token, today) for paper in listing.papers]
    counts = sa.select(Paper.id, Paper.votes, Paper.comments).where(Paper.id.in_(listing.numbers))
    keys = {row[0]: (*row, today) for row in session.execute(counts)}
    kept = site.entries if site.settings.cache_seconds else Kept()
    pieces = {number: piece for number, key in keys.items() if (piece := kept.get(key))}
    if len(pieces) < len(keys):
        for paper in listing.papers:
            if paper.id not in pieces:
                pieces[paper.id] = _make(site, paper, None, False, None, today)
                kept.put((paper.id, paper.votes, paper.comments, today), pieces[paper.id])
    return [pieces[number] for number in listing.numbers if number in pieces]


def marked(session: Session, table: type[Vote] | type[Saved], visitor: Person, papers: list[int]) -> set[int]:
    """Which of ``papers`` a person voted for, or saved."""
    asked = sa.select(table.paper_id).where(table.person_id == visitor.id, table.paper_id.in_(papers))
    return set(session.scalars(asked))


def _make(site: Site, *values: object) -> Markup:
    return Markup(site.templates.get_template("entry.html").module.entry(*values))  # type: ignore[attr-defined]
