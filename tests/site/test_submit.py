"""Submitting papers."""

import json

import pytest
import sqlalchemy as sa

from everyformer.site.models import Paper
from everyformer.site.routes import community

ATOM = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom"><entry>
  <id>http://arxiv.org/abs/2601.00001v2</id><title>Fewer tokens</title><summary>We use fewer.</summary>
  <published>2026-01-02T10:00:00Z</published><author><name>A. Author</name></author>
</entry></feed>"""


def submit(page, client=None, file=None, **fields):
    client = client or page.client
    files = {"file": ("paper.xml", file)} if file is not None else {"file": ("", b"")}
    return client.post("/submit", data=page.form(client, **fields), files=files)


def titles(page):
    with page.database.read() as session:
        return session.scalars(sa.select(Paper.title).order_by(Paper.id)).all()


def test_a_file_puts_a_paper_on_the_page(any_page):
    person = any_page.sign_in()
    answer = submit(any_page, file=ATOM)
    assert answer.headers["location"] == "/papers/2601.00001?said=submitted"
    assert "Fewer tokens" in any_page.client.get("/papers/2601.00001").text
    with any_page.database.read() as session:
        paper = session.scalars(sa.select(Paper)).one()
        assert (paper.submitted_by, paper.submitted_on) == (person, any_page.clock().date())
    assert submit(any_page, file=ATOM).headers["location"] == "/papers/2601.00001?said=known"


@pytest.mark.parametrize("text", ["2502.10389", "2502.10389v3", "https://arxiv.org/abs/2502.10389", "arXiv:2502.10389"])
def test_a_paper_that_is_here_is_shown(site_page, text):
    site_page.add_paper(slug="sla")
    site_page.sign_in()
    assert submit(site_page, arxiv=text).headers["location"] == "/papers/sla?said=known"


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"arxiv": "2601.00001"}, "add arXiv&#39;s file"),
        ({"arxiv": "<b>"}, "must be an arXiv identifier"),
        ({}, "Name a paper, or choose a file"),
        ({"file": ATOM[:200]}, "cut off"),
        ({"file": '<!DOCTYPE x [<!ENTITY y "z">]><feed/>'}, "document type"),
        ({"file": "[]"}, "1 to 100 papers"),
        ({"file": json.dumps([{"id": f"2601.{n:05}", "title": "x"} for n in range(101)])}, "this one has 101"),
        ({"file": "x" * (2**20 + 1)}, "1 MB"),
        ({"file": b"\xff\x00"}, "neither"),
    ],
)
def test_what_cannot_be_taken_is_explained_and_nothing_is_kept(site_page, fields, said):
    site_page.sign_in()
    answer = submit(site_page, **fields)
    assert answer.status_code == 422
    assert said in answer.text
    assert titles(site_page) == []


def test_readers_add_papers_and_change_none(site_page):
    site_page.add_paper("2601.00001", title="As it was")
    site_page.sign_in("ada@example.org")
    told = [
        {"id": "2601.00001", "title": "Defaced", "summary": "x"},
        {"id": "2601.00002", "title": "New", "summary": "mine", "abstract": "its own", "numComments": 999,
         "submittedOnDailyAt": "2020-01-01T00:00:00Z", "tags": ["vision"]},
    ]  # fmt: skip
    assert submit(site_page, file=json.dumps(told)).status_code == 303
    with site_page.database.read() as session:
        assert titles(site_page) == ["As it was", "New"]
        new = session.scalars(sa.select(Paper).where(Paper.arxiv == "2601.00002")).one()
        assert (new.summary, new.abstract, new.comments_elsewhere, new.tags) == ("", "its own", 0, [])
        assert new.submitted_on == site_page.clock().date()
    curator = site_page.visitor()
    site_page.sign_in("cleo@example.org", role="curator", client=curator)
    submit(site_page, curator, file=json.dumps([{"id": "2601.00001", "title": "As it is"}]))
    assert titles(site_page) == ["As it is", "New"]


def test_the_network_is_asked_where_it_is_allowed(site_page, monkeypatch):
    site_page.site.settings.network = True
    monkeypatch.setattr(community.importers, "_ask", lambda identifiers: ATOM.encode())
    site_page.sign_in()
    assert submit(site_page, arxiv="2601.00001").headers["location"] == "/papers/2601.00001?said=submitted"
    answer = submit(site_page, arxiv="2601.99999")
    assert answer.status_code == 422 and "arXiv knows no paper" in answer.text


def test_submissions_are_limited_and_need_an_account(site_page):
    assert submit(site_page, file=ATOM).headers["location"].startswith("/sign-in")
    site_page.sign_in()
    states = [submit(site_page, arxiv="2601.00001").status_code for _ in range(51)]
    assert states == [422] * 50 + [429]
    site_page.clock.forward(days=1)
    assert submit(site_page, file=ATOM).status_code == 303
