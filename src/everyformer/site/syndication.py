"""Feeds of papers for feed readers: Atom, RSS and JSON Feed, made of the same entries."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence

from everyformer.site import display
from everyformer.site.models import Paper
from everyformer.site.settings import Settings

KINDS = {"atom": "application/atom+xml", "rss": "application/rss+xml", "json": "application/feed+json"}
# What XML 1.0 cannot hold.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclasses.dataclass(frozen=True)
class Feed:
    """A list of papers to read elsewhere; ``address`` is the feed's own, ``page`` that of the list for people."""

    title: str
    address: str
    page: str
    papers: Sequence[Paper]
    started: datetime.datetime

    @property
    def updated(self) -> datetime.datetime:
        """When its latest paper came."""
        return max((paper.submitted_at for paper in self.papers), default=self.started).replace(microsecond=0)


def write(feed: Feed, kind: str, settings: Settings) -> bytes:
    """The feed as ``kind``: atom, rss or json."""
    return _json(feed, settings) if kind == "json" else _xml(feed, kind, settings)


def _identity(paper: Paper, settings: Settings) -> str:
    """An entry's identity: by its arXiv identifier, which stays when the paper gets a name in the catalogue."""
    return f"{settings.public_url}/papers/{paper.arxiv}"


def _text(paper: Paper) -> str:
    """What the feed of the page says: the summary, and the figures of the claim shown there."""
    text = paper.summary or paper.abstract
    if paper.headline:
        result = paper.headline["result"]
        text += (
            f"\n\n{display.metric(result)}: paper {display.reported(result)}, here {display.measured(result)}, "
            f"{result['verdict']}."
        )
    return _FORBIDDEN.sub("", text)


def _xml(feed: Feed, kind: str, settings: Settings) -> bytes:
    from feedgen.feed import FeedGenerator

    made = FeedGenerator()
    made.id(feed.address)
    made.title(_FORBIDDEN.sub("", feed.title))
    made.description("Transformer papers with what was measured of them.")
    made.link(href=feed.address, rel="self")
    made.link(href=feed.page, rel="alternate")  # the last one is what RSS links to
    made.author(name="everyformer")
    made.updated(feed.updated)
    made.lastBuildDate(feed.updated)
    made.language("en")
    made.generator("everyformer")
    for paper in feed.papers:
        entry = made.add_entry(order="append")
        entry.id(_identity(paper, settings))
        entry.guid(_identity(paper, settings), permalink=True)
        entry.title(_FORBIDDEN.sub("", paper.title))
        entry.link(href=f"{settings.public_url}/papers/{paper.key}")
        entry.published(paper.submitted_at.replace(microsecond=0))
        entry.updated(paper.submitted_at.replace(microsecond=0))
        for name in paper.names[:50]:
            entry.author(name=_FORBIDDEN.sub("", name))
        for tag in paper.tags:
            entry.category(term=_FORBIDDEN.sub("", tag))
        entry.description(_text(paper))
    written: bytes = made.atom_str() if kind == "atom" else made.rss_str()
    return written


def _json(feed: Feed, settings: Settings) -> bytes:
    items = [
        {
            "id": _identity(paper, settings),
            "url": f"{settings.public_url}/papers/{paper.key}",
            "external_url": f"https://arxiv.org/abs/{paper.arxiv}",
            "title": paper.title,
            "content_text": _text(paper),
            "date_published": paper.submitted_at.isoformat(timespec="seconds"),
            "authors": [{"name": name} for name in paper.names],
            "tags": paper.tags,
        }
        for paper in feed.papers
    ]
    whole = {
        "version": "https://jsonfeed.org/version/1.1",
        "title": feed.title,
        "home_page_url": feed.page,
        "feed_url": feed.address,
        "description": "Transformer papers with what was measured of them.",
        "language": "en",
        "items": items,
    }
    return json.dumps(whole, ensure_ascii=False, indent=1).encode("utf-8", "replace")
