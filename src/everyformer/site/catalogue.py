"""The catalogue's papers, claims and recorded results as rows of the page."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from everyformer import catalog
from everyformer.catalog import Claim, Paper, Result
from everyformer.site import models
from everyformer.site.web import Site

# Of a claim recorded at several scales, the page shows the largest.
SCALES = ("paper", "cpu", "smoke")


def import_catalogue(site: Site) -> int:
    """Bring every paper of the catalogue with its recorded results onto the page; the number of papers that changed.

    A paper that is there keeps its votes, comments and day of submission; what the card says replaces what was said.
    """
    results = catalog.recorded(*filter(None, [site.settings.results]), catalog.shipped_results())
    # Comments that the feed showed from which the collection was chosen, by arXiv identifier.
    elsewhere = json.loads((Path(__file__).parent / "seed.json").read_text(encoding="utf-8"))
    papers = catalog.papers()
    changed = 0
    with site.database.write() as session:
        known = sa.select(models.Paper).where(models.Paper.arxiv.in_([paper.arxiv for paper in papers]))
        rows = {row.arxiv: row for row in session.scalars(known)}
        for paper in papers:
            row = rows.get(paper.arxiv)
            if row is None:
                row = models.Paper(arxiv=paper.arxiv, submitted_at=site.now(), submitted_on=site.now().date())
                session.add(row)
            for name, value in _facts(paper, results).items():
                if getattr(row, name) != value:
                    setattr(row, name, value)
            row.comments_elsewhere = max(row.comments_elsewhere or 0, elsewhere.get(paper.arxiv, 0))
            new_claims = _claims(paper, results)
            if not session.is_modified(row) and row not in session.new and new_claims == _claims_of(session, row):
                continue
            changed += 1
            session.flush()
            set_tags(session, row, paper.tags)
            session.execute(sa.delete(models.ClaimRow).where(models.ClaimRow.paper_id == row.id))
            session.add_all(models.ClaimRow(paper_id=row.id, **claim) for claim in new_claims)
    return changed


def set_tags(session: Session, row: models.Paper, tags: Iterable[str]) -> None:
    """Give a paper these tags and no others, where it is shown and where filters look."""
    row.tags = list(tags)
    session.execute(sa.delete(models.PaperTag).where(models.PaperTag.paper_id == row.id))
    session.add_all(models.PaperTag(tag=tag, paper_id=row.id) for tag in row.tags)


def first_of_month(arxiv: str) -> datetime.date:
    """The month in an arXiv identifier, old (``cs/0112017``) or new (``2502.10389``), as its first day."""
    digits = arxiv.rpartition("/")[2]
    year, month = int(digits[:2]), int(digits[2:4])
    return datetime.date(1900 + year if year > 90 else 2000 + year, month, 1)


def best_result(paper: Paper, claim: Claim, results: Mapping[str, Result]) -> Result | None:
    """The recorded result of ``claim`` at the largest scale there is."""
    found = (results.get(f"{paper.slug}.{claim.name}.{scale}") for scale in SCALES)
    return next((result for result in found if result), None)


def _facts(paper: Paper, results: Mapping[str, Result]) -> dict[str, Any]:
    """What the card says, in the page's columns."""
    published = datetime.date.fromisoformat(paper.published) if paper.published else None
    recorded = [(claim, best_result(paper, claim, results)) for claim in paper.claims]
    return {
        "slug": paper.slug,
        "title": paper.title,
        "summary": paper.summary,
        "author_count": paper.authors,
        "organisation": paper.organisation,
        "published_on": published,
        "ordered_on": published or first_of_month(paper.arxiv),
        "code_url": paper.code,
        "licence": paper.licence,
        "tags": list(paper.tags),
        "runs_here": paper.built,
        "verdicts": {claim.name: result.verdict for claim, result in recorded if result},
        "headline": _headline(recorded),
    }


def _headline(recorded: list[tuple[Claim, Result | None]]) -> dict[str, Any] | None:
    """The claim that the feed shows: the first measured one for which the paper gives a figure, else the first."""
    measured = [(claim, result) for claim, result in recorded if result]
    if not measured:
        return None
    claim, result = next((pair for pair in measured if pair[0].paper_value is not None), measured[0])
    return {"claim": claim.name, "result": _row(result)}


def _row(result: Result) -> dict[str, Any]:
    """A result without its series and extras: what a row of a table needs."""
    data = result.to_json()
    return {name: value for name, value in data.items() if name not in ("series", "extras", "versions")}


def _claims(paper: Paper, results: Mapping[str, Result]) -> list[dict[str, Any]]:
    rows = []
    for position, claim in enumerate(paper.claims):
        result = best_result(paper, claim, results)
        card = {
            name: getattr(claim, name)
            for name in (
                "statement", "metric", "unit", "better", "paper_value", "paper_baseline", "setting", "method", "baseline",
            )
        }  # fmt: skip
        rows.append(
            {
                "name": claim.name,
                "position": position,
                "card": card,
                "runnable": bool(claim.run),
                "verdict": result.verdict if result else None,
                # Tuples are lists once they have been in a database.
                "result": json.loads(json.dumps(result.to_json())) if result else None,
            }
        )
    return rows


def _claims_of(session: Session, row: models.Paper) -> list[dict[str, Any]]:
    found = session.scalars(
        sa.select(models.ClaimRow).where(models.ClaimRow.paper_id == row.id).order_by(models.ClaimRow.position)
    )
    names = ("name", "position", "card", "runnable", "verdict", "result")
    return [{name: getattr(claim, name) for name in names} for claim in found]
