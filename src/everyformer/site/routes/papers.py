"""A paper's page: what it claims, what was measured, how to use it, and what people say."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Request
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from everyformer import catalog
from everyformer.site import notes, search
from everyformer.site.comments import thread
from everyformer.site.entries import marked
from everyformer.site.models import ClaimRow, Paper, Run, Saved, Vote
from everyformer.site.web import ASite, Visitor, page, plot

router = APIRouter(include_in_schema=False)


def find_paper(session: Session, key: str) -> Paper:
    """The paper of this slug or arXiv identifier; 404 when there is none."""
    found = session.scalar(sa.select(Paper).where(sa.or_(Paper.slug == key, Paper.arxiv == key)))
    if found is None:
        raise HTTPException(404, f"There is no paper {key!r} here.")
    return found


@router.get("/papers/{key:path}/plots/{stem}.svg")
def recorded_plot(key: str, stem: str, site: ASite) -> Response:
    """The plot of a recorded result."""
    if not re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+\.(smoke|cpu|paper)", stem):
        raise HTTPException(404, "There is no such plot.")
    folders = filter(None, (site.settings.results, catalog.shipped_results()))
    found = (folder / f"{stem}.svg" for folder in folders)
    return plot(next((file for file in found if file.is_file()), Path()), 3600)


@router.get("/papers/{key:path}")
def paper_page(key: str, request: Request, site: ASite, visitor: Visitor) -> Response:
    """The page of the paper with this slug or arXiv identifier."""
    with site.database.read() as session:
        paper = find_paper(session, key)
        if key != paper.key:
            return RedirectResponse(f"/papers/{paper.key}", 308)
        claims = session.scalars(
            sa.select(ClaimRow).where(ClaimRow.paper_id == paper.id).order_by(ClaimRow.position)
        ).all()
        runs = session.scalars(sa.select(Run).where(Run.paper_id == paper.id).order_by(Run.id.desc()).limit(8)).all()
        voted = visitor is not None and bool(marked(session, Vote, visitor, [paper.id]))
        saved = visitor is not None and bool(marked(session, Saved, visitor, [paper.id]))
        comments = thread(session, paper.id)
    return page(
        request,
        "paper.html",
        visitor,
        paper=paper,
        claims=claims,
        runs=runs,
        voted=voted,
        saved=saved,
        comments=comments,
        similar=search.similar(site, paper),
        **_of_the_catalogue(paper.slug),
    )


@functools.lru_cache(maxsize=256)
def _of_the_catalogue(slug: str | None) -> dict[str, Any]:
    """The snippet and the notes of a paper that is built, from the README in its folder."""
    readme = catalog.PAPERS / (slug or "") / "README.md"
    if slug is None or not readme.is_file():
        return {"snippet": "", "notes": ""}
    text = readme.read_text(encoding="utf-8")
    return {"snippet": notes.first_python(text), "notes": notes.sections(text)}
