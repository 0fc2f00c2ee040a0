"""Search: ranks by words and ranks by meaning, fused; then filters.

Full text is each database's own (FTS5, tsvector); no text of a visitor becomes part of a statement, or of FTS5's query
language, except as quoted words.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from everyformer.site.arxiv import arxiv_id
from everyformer.site.feed import PAGE, Listing, Period
from everyformer.site.models import ClaimRow, Paper, PaperTag
from everyformer.site.query import Query
from everyformer.site.web import Site

K = 60  # of reciprocal rank fusion: a rank is worth 1 / (K + rank)
DEEPEST = 200  # ranks by words
NEAREST = 100  # ranks by meaning
RANKED = 1000  # of more papers than these the newest are ranked: words that are everywhere tell little
FEW = 10  # with fewer papers that have all words, those that have any of them follow

Phrase = Sequence[str]


def search(
    site: Site, session: Session, query: Query, page: int = 0, limit: int = PAGE, within: Period | None = None
) -> Listing:
    """A page of the papers that ``query`` asks for, best first; the newest first when it only filters.

    ``within`` is the day, week or month in which they were submitted.
    """
    if not query.terms and not query.filtered:
        return Listing(session, [], limit)
    words = _words_of(session)
    allowed = _allowed(words, query)
    if within:
        allowed += [Paper.submitted_on >= within.first, Paper.submitted_on < within.end]
    start = page * limit
    if not query.terms and not query.phrases:
        newest = sa.select(Paper.id).where(*allowed).order_by(Paper.ordered_on.desc(), Paper.id.desc())
        return Listing(session, session.scalars(newest.offset(start).limit(limit + 1)).all(), limit)
    return Listing(session, ranks(site, session, query, words, allowed)[start : start + limit + 1], limit)


def similar(site: Site, paper: Paper, n: int = 5) -> list[Paper]:
    """The papers nearest in meaning; none while there is no semantic index."""
    with site.database.read() as session:
        near = site.semantic.neighbours(session, paper, n)
        found = {other.id: other for other in session.scalars(sa.select(Paper).where(Paper.id.in_(near)))}
    return [found[other] for other in near if other in found]


def ranks(
    site: Site, session: Session, query: Query, words: _Words, allowed: Sequence[sa.ColumnElement[bool]]
) -> list[int]:
    """Papers by fused rank, best first."""
    by_words = _by_words(session, query, words, allowed)
    narrowed: list[int] | None = None
    if allowed:
        narrowed = list(session.scalars(sa.select(Paper.id).where(*allowed).limit(RANKED + 1)))
        if len(narrowed) > RANKED:
            narrowed = None
    by_meaning = site.semantic.answers(session, query.sentence, NEAREST, narrowed)
    if allowed and narrowed is None and by_meaning:
        still = set(session.scalars(sa.select(Paper.id).where(Paper.id.in_(by_meaning), *allowed)))
        by_meaning = [paper for paper in by_meaning if paper in still]
    ranked = fuse(by_words, by_meaning)
    if " " not in query.text:
        named = session.scalars(sa.select(Paper.id).where(_named(query.text), *allowed))
        ranked = list(dict.fromkeys([*named, *ranked]))
    return ranked


def _named(text: str) -> sa.ColumnElement[bool]:
    """The paper whose name here or arXiv identifier is all that was typed; it goes first."""
    try:
        arxiv = arxiv_id(text)
    except ValueError:
        arxiv = ""
    return sa.or_(Paper.slug == text.lower(), Paper.arxiv == arxiv)


def fuse(*rankings: Sequence[int]) -> list[int]:
    """One ranking of several, by the sum of reciprocal ranks; among equals the later paper goes first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, paper in enumerate(ranking, 1):
            scores[paper] = scores.get(paper, 0.0) + 1 / (K + rank)
    return sorted(scores, key=lambda paper: (-scores[paper], -paper))


def _by_words(session: Session, query: Query, words: _Words, allowed: Sequence[sa.ColumnElement[bool]]) -> list[int]:
    phrases = [*((word,) for word in dict.fromkeys(query.terms)), *query.phrases]
    found = words.ranked(session, phrases, [], allowed)
    if len(found) < FEW and len(query.terms) > 1:
        # A word that very many papers have would only add papers by the thousand.
        single = [(word,) for word in dict.fromkeys(query.terms)]
        rare = [phrase for phrase in single if not words.is_common(session, phrase)]
        more = words.ranked(session, query.phrases, rare or single, allowed)
        found = list(dict.fromkeys([*found, *more]))
    return found


def _allowed(words: _Words, query: Query) -> list[sa.ColumnElement[bool]]:
    """What every answer must fulfil, whichever way it was found."""
    conditions: list[sa.ColumnElement[bool]] = [Paper.id.in_(words.holding(phrase)) for phrase in query.phrases]
    conditions += [Paper.id.not_in(words.holding(phrase)) for phrase in query.without]
    conditions += [Paper.id.in_(words.holding(name, "authors")) for name in query.authors]
    conditions += [Paper.id.in_(words.holding(name, "organisation")) for name in query.organisations]
    if query.after:
        conditions.append(Paper.ordered_on >= query.after)
    if query.before:
        conditions.append(Paper.ordered_on < query.before)
    for tag in query.tags:
        conditions.append(Paper.id.in_(sa.select(PaperTag.paper_id).where(PaperTag.tag == tag)))
    if query.runs is not None:
        conditions.append(Paper.runs_here.is_(query.runs))
    if query.verdict:
        conditions.append(Paper.id.in_(sa.select(ClaimRow.paper_id).where(ClaimRow.verdict == query.verdict)))
    return conditions


class _Words(Protocol):
    """What a database's full text can do."""

    def ranked(
        self,
        session: Session,
        every: Iterable[Phrase],
        any_: Sequence[Phrase],
        allowed: Sequence[sa.ColumnElement[bool]],
    ) -> list[int]:
        """Papers with each phrase of ``every`` and, if there are some, one of ``any_``; best first."""

    def holding(self, phrase: Phrase, column: str = "") -> sa.Select[int]:
        """The identifiers of the papers that hold a phrase, anywhere or in ``column``."""

    def is_common(self, session: Session, phrase: Phrase) -> bool:
        """Whether more than :data:`RANKED` papers hold it."""


def _words_of(session: Session) -> _Words:
    return _SQLite() if session.get_bind().dialect.name == "sqlite" else _PostgreSQL()


class _SQLite:
    """FTS5. Its ``bm25`` takes the columns' weights: title, authors, organisation, summary, abstract."""

    index = sa.table("paper_fts", sa.column("rowid", sa.Integer))
    match = sa.literal_column("paper_fts").op("MATCH")

    def ranked(
        self,
        session: Session,
        every: Iterable[Phrase],
        any_: Sequence[Phrase],
        allowed: Sequence[sa.ColumnElement[bool]],
    ) -> list[int]:
        match = " AND ".join([*map(_quoted, every), *([f"({' OR '.join(map(_quoted, any_))})"] if any_ else [])])
        score = sa.literal_column("bm25(paper_fts, 8.0, 2.0, 2.0, 4.0, 4.0)", sa.Float).label("score")
        newest = (
            sa.select(self.index.c.rowid, score)
            .where(_SQLite.match(match))
            .order_by(self.index.c.rowid.desc())
            .limit(RANKED)
        )
        if allowed:
            # The sum keeps SQLite from asking the index once for each allowed paper, which takes minutes.
            newest = newest.where((self.index.c.rowid + 0).in_(sa.select(Paper.id).where(*allowed)))
        best = newest.subquery()
        return list(session.scalars(sa.select(best.c.rowid).order_by(best.c.score, best.c.rowid.desc()).limit(DEEPEST)))

    def holding(self, phrase: Phrase, column: str = "") -> sa.Select[int]:
        match = f"{column} : {_quoted(phrase)}" if column else _quoted(phrase)
        return sa.select(self.index.c.rowid).where(_SQLite.match(match))

    def is_common(self, session: Session, phrase: Phrase) -> bool:
        return _counts_more(session, self.holding(phrase))


def _counts_more(session: Session, papers: sa.Select[int]) -> bool:
    return (session.scalar(sa.select(sa.func.count()).select_from(papers.limit(RANKED + 1).subquery())) or 0) > RANKED


def _quoted(phrase: Phrase) -> str:
    """A phrase in FTS5's language. The words hold letters and digits only, and quoted ones are no operators."""
    return '"' + " ".join(phrase) + '"'


class _PostgreSQL:
    """A generated tsvector; names in it are not stemmed, so that each phrase is looked for both ways."""

    document: sa.ColumnElement[Any] = sa.literal_column("paper.document")

    def ranked(
        self,
        session: Session,
        every: Iterable[Phrase],
        any_: Sequence[Phrase],
        allowed: Sequence[sa.ColumnElement[bool]],
    ) -> list[int]:
        parts = [self._query(phrase) for phrase in every]
        if any_:
            parts.append(functools.reduce(sa.func.tsquery_or, [self._query(phrase) for phrase in any_]))
        query = functools.reduce(sa.func.tsquery_and, parts)
        weights: sa.ColumnElement[Any] = sa.literal_column("'{0.25, 0.25, 0.5, 1.0}'::float4[]")
        newest = (
            sa.select(Paper.id, sa.func.ts_rank(weights, self.document, query, 1).label("score"))
            .where(self.document.op("@@")(query), *allowed)
            .order_by(Paper.id.desc())
            .limit(RANKED)
        )
        best = newest.subquery()
        return list(
            session.scalars(sa.select(best.c.id).order_by(best.c.score.desc(), best.c.id.desc()).limit(DEEPEST))
        )

    def holding(self, phrase: Phrase, column: str = "") -> sa.Select[int]:
        found = sa.select(Paper.id).where(self.document.op("@@")(self._query(phrase)))
        if column:  # the index knows the phrase to be there; this says where
            text = sa.func.to_tsvector("simple", sa.func.coalesce(getattr(Paper, column), ""))
            found = found.where(text.op("@@")(sa.func.phraseto_tsquery("simple", " ".join(phrase))))
        return found

    def is_common(self, session: Session, phrase: Phrase) -> bool:
        return _counts_more(session, self.holding(phrase))

    def _query(self, phrase: Phrase) -> sa.ColumnElement[Any]:
        text = " ".join(phrase)
        return sa.func.tsquery_or(sa.func.phraseto_tsquery("english", text), sa.func.phraseto_tsquery("simple", text))
