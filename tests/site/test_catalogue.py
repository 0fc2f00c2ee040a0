"""The catalogue's papers on the page: all of them, with the facts of their cards and what was measured."""

import datetime
import json
import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from everyformer import catalog
from everyformer.site.catalogue import first_of_month, import_catalogue
from everyformer.site.models import ClaimRow, Paper, PaperTag


def test_every_paper_comes_with_its_facts(any_page):
    assert import_catalogue(any_page.site) == len(catalog.papers())
    with any_page.database.read() as session:
        rows = {row.slug: row for row in session.scalars(sa.select(Paper))}
        assert set(rows) == {paper.slug for paper in catalog.papers()}
        for paper in catalog.papers():
            row = rows[paper.slug]
            assert (row.arxiv, row.title, row.summary) == (paper.arxiv, paper.title, paper.summary)
            assert (row.author_count, row.organisation) == (paper.authors, paper.organisation)
            assert (row.published_on.isoformat() if row.published_on else None) == paper.published
            assert row.runs_here == paper.built
            tags = session.scalars(sa.select(PaperTag.tag).where(PaperTag.paper_id == row.id))
            assert sorted(tags) == sorted(paper.tags) == sorted(row.tags)
            claims = session.scalars(
                sa.select(ClaimRow).where(ClaimRow.paper_id == row.id).order_by(ClaimRow.position)
            ).all()
            assert [claim.name for claim in claims] == [claim.name for claim in paper.claims]
            assert {claim.name: claim.verdict for claim in claims if claim.verdict} == row.verdicts


def test_importing_again_changes_nothing_and_keeps_votes(any_page):
    import_catalogue(any_page.site)
    with any_page.database.write() as session:
        session.execute(sa.update(Paper).where(Paper.slug == "sla").values(votes=5, points=5.0))
    any_page.clock.forward(days=3)
    assert import_catalogue(any_page.site) == 0
    with any_page.database.read() as session:
        row = session.scalars(sa.select(Paper).where(Paper.slug == "sla")).one()
        assert (row.votes, row.submitted_on) == (5, datetime.date(2026, 11, 25))


def test_a_newer_result_takes_the_place_of_the_old(site_page, tmp_path):
    import_catalogue(site_page.site)
    file = catalog.shipped_results() / "sla.speed.cpu.json"
    data = json.loads(file.read_text())
    data["verdict"] = "direction only"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / file.name).write_text(json.dumps(data))
    site_page.site.settings.results = tmp_path / "new"
    assert import_catalogue(site_page.site) == 1
    with site_page.database.read() as session:
        row = session.scalars(sa.select(Paper).where(Paper.slug == "sla")).one()
        assert row.verdicts["speed"] == "direction only"
        assert row.headline["result"]["verdict"] == "direction only"


def test_comments_where_the_papers_were_found(site_page):
    """The collection was chosen from a feed whose facts are kept beside the data, where there is a copy."""
    index = Path(os.environ.get("EVERYFORMER_DATA", "")) / ".." / "papers" / "index.json"
    if not index.is_file():
        pytest.skip("the list of the feed is not here")
    import_catalogue(site_page.site)
    with site_page.database.read() as session:
        rows = {row.slug: row for row in session.scalars(sa.select(Paper))}
    for entry in json.loads(index.read_text()):
        row = rows[entry["slug"]]
        assert row.comments_elsewhere == entry["comments"]
        assert row.arxiv == entry["arxiv"]
        if entry["published"]:
            assert row.published_on.isoformat() == entry["published"]
        if entry["organisation"]:
            assert row.organisation == entry["organisation"]
        if entry["authors"]:
            assert row.author_count == entry["authors"] or row.organisation


@pytest.mark.parametrize(
    ("arxiv", "day"), [("2502.10389", "2025-02-01"), ("cs/0112017", "2001-12-01"), ("hep-th/9203001", "1992-03-01")]
)
def test_the_month_in_an_identifier(arxiv, day):
    assert first_of_month(arxiv).isoformat() == day
